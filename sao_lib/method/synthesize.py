"""Stage 1: personas -> one prompt each (SAO 3.1, eq. 1), then two responses per prompt (3.2, eq. 2).

Table 5's other prompt sources go the same way.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sao_lib.chunks import in_chunks
from sao_lib.engines import Completion, Conversation, Engine, seed_for, user_turn
from sao_lib.engines.chat import Message, fill
from sao_lib.errors import SaoError
from sao_lib.runs import Run
from sao_lib.settings import ROOT, Policy, Synthesize
from sao_lib.sources import load_rows
from sao_lib.yaml_files import read_yaml

MARK = "User prompt:"
# How a text begins that is no prompt. Further on they are ordinary: "Can you please provide ...".
ROLE_SLIPS = ("how can i help you", "how can i assist you", "i'm ready to help", "as an ai ")
META = ("guess a prompt", "the persona", "user prompt")


def load_personas(source: str, n: int, seed: int) -> list[dict[str, str]]:
    """`n` personas drawn without replacement; rows {id, persona}.

    `source` is a JSONL file of the suite or `hub:dataset@revision/file` (PersonaHub). Raises SaoError when it
    is missing, has an unreadable row, or has fewer than `n`.
    """
    rows = [
        {"id": str(row.get("id", f"p{number:06d}")), "persona": str(row["persona"])}
        for number, row in enumerate(load_rows(source, texts=["persona"], unique=["id"]), 1)
        if row.get("persona")
    ]
    return _draw(rows, n, seed, source)


def load_dataset_prompts(source: str, n: int, seed: int) -> list[dict[str, str]]:
    """`n` prompts of a preference data set (a `prompt` in every row), drawn without replacement: {id, prompt}."""
    rows = [
        {"id": str(row.get("prompt_id", f"d{number:06d}"))[:16], "prompt": str(row["prompt"]).strip()}
        for number, row in enumerate(load_rows(source, texts=["prompt"], unique=["prompt_id"]), 1)
        if row.get("prompt")
    ]
    return _draw(rows, n, seed, source)


def _draw(rows: list[dict[str, str]], n: int, seed: int, source: str) -> list[dict[str, str]]:
    if len(rows) < n:
        raise SaoError(f"{source} has {len(rows)} usable rows, fewer than synthesize.n = {n}; lower n or add rows.")
    return random.Random(seed).sample(rows, n)


@dataclass(frozen=True)
class PromptSource:
    """What prompts are made from. `draw` gives rows {id, persona, prompt} for the settings and a seed.

    `folder_name` marks runs other than the default's; `files` are what it reads. `written`: the policy writes the
    prompts; else they are taken as they come.
    """

    printed: str
    folder_name: str
    written: bool
    files: Callable[[Synthesize], list[str]]
    draw: Callable[[Synthesize, int], list[dict[str, Any]]]


EMPTY = {"persona": None, "prompt": None}


def _personas(settings: Synthesize, seed: int) -> list[dict[str, Any]]:
    return [{**EMPTY, **row} for row in load_personas(settings.personas, settings.n, seed)]


def _nothing(settings: Synthesize, seed: int) -> list[dict[str, Any]]:
    return [{**EMPTY, "id": f"r{number:06d}"} for number in range(settings.n)]


def _from_dataset(settings: Synthesize, seed: int) -> list[dict[str, Any]]:
    return [{**EMPTY, **row} for row in load_dataset_prompts(settings.dataset, settings.n, seed)]


PROMPT_SOURCES: dict[str, PromptSource] = {  # SAO table 5
    "persona": PromptSource("personas", "", True, lambda s: [s.template, s.personas], _personas),
    "random": PromptSource("the model alone", "random-prompts", True, lambda s: [s.template], _nothing),
    "dataset": PromptSource("a data set", "dataset-prompts", False, lambda s: [s.dataset], _from_dataset),
}


def asked(settings: Synthesize, seed: int) -> list[dict[str, Any]]:
    """What each prompt is made from, rows {id, persona, prompt}."""
    return PROMPT_SOURCES[settings.source].draw(settings, seed)


def persona_request(template: dict[str, Any], persona: str | None) -> Conversation:
    """The persona instruction (SAO figure 5, top) for one persona, with the template's examples if any.

    A template without a persona (source `random`) is filled with nothing.
    """
    persona = persona or ""
    messages: list[Message] = []
    for example in template["examples"]:
        messages.append({"role": "user", "content": fill(template["user"], {"persona": example["persona"]})})
        messages.append({"role": "assistant", "content": example["prompt"]})
    messages.append({"role": "user", "content": fill(template["user"], {"persona": persona})})
    return Conversation(tuple(messages), fill(template["prefill"], {"persona": persona}))


def prompt_from(text: str) -> str:
    """The prompt in a model's answer: what follows "User prompt:", its lines kept, without quotes round it."""
    return text.split(MARK, 1)[-1].strip().strip('"').strip()


def ended(text: str, finished: bool, stop: str | None) -> tuple[str, bool]:
    """`text` up to `stop`, and whether it ended: a base model ends a turn as the examples do, not by a token."""
    before, found, _ = text.partition(stop) if stop else (text, "", "")
    return before, finished or bool(found)


def reject_reason(prompt: str, finished: bool, max_words: int) -> str | None:
    """What is wrong with a synthesized prompt, or None if nothing is. Ours: the paper mentions no filter."""
    words, low = prompt.split(), prompt.lower()
    if not finished:
        return "not finished"
    if not 5 <= len(words) <= max_words:
        return "length"
    if low.startswith(ROLE_SLIPS):
        return "role slip"
    if low.startswith(META):
        return "about the task"
    if repeated_ngrams(words) > 0.2:
        return "repeats itself"
    return None


def usable(prompts: Sequence[dict[str, Any]], settings: Synthesize) -> list[dict[str, Any]]:
    """The prompts that are answered: with `filter: drop` those without a fault, with `log` all that are not empty."""
    return [row for row in prompts if row["reason"] is None or (settings.filter == "log" and row["prompt"])]


def repeated_ngrams(words: list[str], n: int = 6) -> float:
    """Share of n-grams that occur before in the same text."""
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def make_prompts(run: Run, engine: Engine, settings: Synthesize, seed: int) -> list[dict[str, Any]]:
    """Write prompts.jsonl: {id, persona, prompt, reason}; reason is the prompt's fault, null where it has none."""
    template = read_yaml(ROOT / settings.template)

    def make(part: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        if not PROMPT_SOURCES[settings.source].written:
            return [{**row, "reason": None} for row in part]
        requests = [persona_request(template, row["persona"]) for row in part]
        seeds = [seed_for(seed, row["id"]) for row in part]
        out = engine.generate(requests, settings.max_prompt_tokens, settings.temperature, seeds)
        return [{**row, **_prompt(r, c, template, settings)} for row, r, c in zip(part, requests, out, strict=True)]

    return in_chunks(run, "prompts.jsonl", asked(settings, seed), make, settings.chunk)


def _prompt(
    request: Conversation, completion: Completion, template: dict[str, Any], settings: Synthesize
) -> dict[str, Any]:
    if completion.reason:
        return {"prompt": "", "reason": completion.reason}
    text, finished = ended(completion.text, completion.finished, template.get("stop"))
    prompt = prompt_from(request.prefill + text)
    return {"prompt": prompt, "reason": reject_reason(prompt, finished, settings.max_words)}


def make_responses(
    run: Run, engine: Engine, settings: Synthesize, policy: Policy, prompts: list[dict[str, Any]], seed: int
) -> list[dict[str, Any]]:
    """Write responses.jsonl: {id, prompt, responses: [{text, finished, tokens}] * 2} for the first usable prompts.

    `settings.pairs` says for how many; null: for all. A response that could not be asked for is empty, with a `reason`.
    """
    answered = usable(prompts, settings)[: settings.pairs]

    def make(part: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        requests = [user_turn(policy, row["prompt"]) for row in part for _ in range(2)]
        seeds = [seed_for(seed, row["id"], sample) for row in part for sample in (1, 2)]
        out = engine.generate(requests, settings.max_response_tokens, settings.temperature, seeds)
        parts = [_response(c, settings.sentences) for c in out]
        return [
            {"id": row["id"], "prompt": row["prompt"], "responses": parts[2 * i : 2 * i + 2]}
            for i, row in enumerate(part)
        ]

    return in_chunks(run, "responses.jsonl", answered, make, settings.chunk)


def _response(completion: Completion, sentences: int | None) -> dict[str, Any]:
    text, before = completion.text.strip(), first_sentences(completion.text.strip(), sentences)
    finished = completion.finished or before != text
    why = {"reason": completion.reason} if completion.reason else {}
    return {"text": before, "finished": finished, "tokens": completion.tokens_out, **why}


def first_sentences(text: str, most: int | None) -> str:
    """`text` up to the end of its sentence number `most`; all of it where that is None or it has no more."""
    ends = [found.end() for found in re.finditer(r"[.!?][\"')\]]*(?=\s)", text)] if most else []
    return text[: ends[most - 1]] if most and len(ends) >= most else text


def normal(prompt: str) -> str:
    """A prompt lower-cased, with single spaces: what "the same prompt" means here."""
    return " ".join(prompt.lower().split())


def repetition(prompts: list[str]) -> float:
    """Share of prompts that repeat an earlier one exactly after normalisation (SAO table 5)."""
    seen = {normal(p) for p in prompts}
    return 1 - len(seen) / len(prompts) if prompts else 0.0


def near_duplicates(prompts: list[str], threshold: float = 0.8) -> float:
    """Share of prompts whose set of words overlaps with an earlier one's by a Jaccard index of `threshold` or more.

    Ours: table 12's five prompts differ in single words, so exact repetition misses them. Quadratic in the
    number of prompts; the first 2000 are compared.
    """
    seen: list[frozenset[str]] = []
    repeats = 0
    for prompt in prompts[:2000]:
        words = frozenset(re.findall(r"\w+", prompt.lower()))
        repeats += any(len(words & other) >= threshold * len(words | other) for other in seen)
        seen.append(words)
    return repeats / len(seen) if seen else 0.0


def diversity(vectors: Any) -> float:
    """Mean cosine distance between two prompts, 0 (all alike) to 2; 0 for fewer than two. Ours.

    `vectors` are their embeddings, an array [prompts, dimensions] with rows of length one.
    """
    n = len(vectors)
    return float(1 - ((vectors.sum(0) ** 2).sum() - n) / (n * (n - 1))) if n > 1 else 0.0


def most_repeated(prompts: list[str], k: int = 5) -> list[tuple[str, int]]:
    """The k most frequent prompts after normalisation with their counts (SAO table 12), as first spelt."""
    first: dict[str, str] = {}
    counts = Counter(first.setdefault(normal(p), p) for p in prompts)
    return counts.most_common(k)
