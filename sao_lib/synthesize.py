"""Stage 1: personas -> one prompt each (SAO 3.1, eq. 1), then two responses per prompt (3.2, eq. 2)."""

import hashlib
import json
import random
import re
from pathlib import Path
from typing import Any

from sao_lib.chat import Message, fill
from sao_lib.engines import Conversation, Engine
from sao_lib.errors import SaoError
from sao_lib.progress import Progress
from sao_lib.runs import Run, append_rows, read_rows, resume_rows
from sao_lib.settings import ROOT, Policy, Synthesize, read_yaml

MARK = "User prompt:"
ROLE_SLIPS = ("how can i help", "how can i assist", "i'm ready to help", "please provide", "as an ai")
META = ("guess a prompt", "the persona", "user prompt")


def seed_for(run_seed: int, row: str, sample: int = 0) -> int:
    """A seed that depends on the row and not on its place in a batch."""
    return int(hashlib.sha256(f"{run_seed}/{row}/{sample}".encode()).hexdigest()[:8], 16) % 2**31


def load_personas(source: str, n: int, seed: int) -> list[dict[str, str]]:
    """`n` personas drawn without replacement; rows {id, persona}.

    `source` is a JSONL file of the suite or `hub:dataset@revision/file` (PersonaHub). Raises SaoError when it
    is missing, has an unreadable row, or has fewer than `n`.
    """
    path = _hub_file(source.removeprefix("hub:")) if source.startswith("hub:") else ROOT / source
    rows = [
        {"id": str(row.get("id", f"p{number:06d}")), "persona": str(row["persona"])}
        for number, row in enumerate(read_rows(path), 1)
        if row.get("persona")
    ]
    if len(rows) < n:
        raise SaoError(f"{source} has {len(rows)} personas, fewer than synthesize.n = {n}; lower n or add personas.")
    return random.Random(seed).sample(rows, n)


def _hub_file(source: str) -> Path:
    from huggingface_hub import hf_hub_download

    found = re.fullmatch(r"([\w.-]+/[\w.-]+)@(\w+)/(.+)", source)
    if not found:
        raise SaoError(f"'hub:{source}' is not of the form hub:org/dataset@revision/file.jsonl.")
    try:
        return Path(hf_hub_download(found[1], found[3], repo_type="dataset", revision=found[2]))
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise SaoError(f"Personas {source} cannot be fetched from the hub: {reason}") from None


def persona_request(template: dict[str, Any], persona: str) -> Conversation:
    """The persona instruction (SAO figure 5, top) for one persona, with the template's examples if any."""
    messages: list[Message] = []
    for example in template["examples"]:
        messages.append({"role": "user", "content": fill(template["user"], {"persona": example["persona"]})})
        messages.append({"role": "assistant", "content": example["prompt"]})
    messages.append({"role": "user", "content": fill(template["user"], {"persona": persona})})
    return Conversation(tuple(messages), fill(template["prefill"], {"persona": persona}))


def prompt_from(text: str) -> str:
    """The prompt in a model's answer: what follows "User prompt:", on one line, without quotes round it."""
    return " ".join(text.split(MARK, 1)[-1].split()).strip('"').strip()


def reject_reason(prompt: str, finished: bool) -> str | None:
    """Why a synthesized prompt is not usable, or None if it is."""
    words, low = prompt.split(), prompt.lower()
    if not finished:
        return "not finished"
    if not 5 <= len(words) <= 150:
        return "length"
    if any(slip in low for slip in ROLE_SLIPS):
        return "role slip"
    if any(meta in low for meta in META):
        return "about the task"
    if repeated_ngrams(words) > 0.2:
        return "repeats itself"
    return None


def repeated_ngrams(words: list[str], n: int = 6) -> float:
    """Share of n-grams that occur before in the same text."""
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def make_prompts(run: Run, engine: Engine, settings: Synthesize, seed: int) -> list[dict[str, Any]]:
    """Write prompts.jsonl: {id, persona, prompt, reason}; reason is null where the prompt is usable."""
    path = run.folder / "prompts.jsonl"
    template = read_yaml(ROOT / settings.template)
    personas = load_personas(settings.personas, settings.n, seed)
    rows = resume_rows(path, settings.chunk)
    progress = Progress(run.folder, "prompts", len(personas), len(rows))
    for start in range(len(rows), len(personas), settings.chunk):
        batch = personas[start : start + settings.chunk]
        requests = [persona_request(template, p["persona"]) for p in batch]
        seeds = [seed_for(seed, p["id"]) for p in batch]
        out = engine.generate(requests, settings.max_prompt_tokens, settings.temperature, seeds)
        new = []
        for persona, request, completion in zip(batch, requests, out, strict=True):
            prompt = prompt_from(request.prefill + completion.text)
            new.append({**persona, "prompt": prompt, "reason": reject_reason(prompt, completion.finished)})
        append_rows(path, new)
        rows += new
        progress.update(len(new))
    return rows


def user_turn(policy: Policy, prompt: str) -> Conversation:
    """A prompt as the policy sees it, with its system message if it has one."""
    system: list[Message] = [{"role": "system", "content": policy.system}] if policy.system else []
    return Conversation((*system, {"role": "user", "content": prompt}))


def make_responses(
    run: Run, engine: Engine, settings: Synthesize, policy: Policy, prompts: list[dict[str, Any]], seed: int
) -> list[dict[str, Any]]:
    """Write responses.jsonl: {id, prompt, responses: [{text, finished, tokens}] * 2} for the usable prompts."""
    path = run.folder / "responses.jsonl"
    usable = [row for row in prompts if row["reason"] is None]
    rows = resume_rows(path, settings.chunk)
    progress = Progress(run.folder, "response pairs", len(usable), len(rows), "pairs")
    for start in range(len(rows), len(usable), settings.chunk):
        batch = usable[start : start + settings.chunk]
        requests = [user_turn(policy, row["prompt"]) for row in batch for _ in range(2)]
        seeds = [seed_for(seed, row["id"], sample) for row in batch for sample in (1, 2)]
        out = engine.generate(requests, settings.max_response_tokens, settings.temperature, seeds)
        parts = [{"text": c.text.strip(), "finished": c.finished, "tokens": c.tokens_out} for c in out]
        new = [
            {"id": row["id"], "prompt": row["prompt"], "responses": parts[2 * i : 2 * i + 2]}
            for i, row in enumerate(batch)
        ]
        append_rows(path, new)
        rows += new
        progress.update(len(new))
    return rows


def repetition(prompts: list[str]) -> float:
    """Share of prompts that repeat an earlier one exactly after lower-casing and collapsing spaces."""
    seen = {" ".join(p.lower().split()) for p in prompts}
    return 1 - len(seen) / len(prompts) if prompts else 0.0


def load_json_list(path: Path) -> list[dict[str, Any]]:
    """A JSON list of objects; raises SaoError when the file is missing or is something else."""
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SaoError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(loaded, list):
        raise SaoError(f"{path} must hold a JSON list.")
    return loaded
