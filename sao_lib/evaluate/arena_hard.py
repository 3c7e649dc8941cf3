"""Arena-Hard v0.1: each answer against a baseline's, judged in both orders (Li et al. 2024), without style control.

The five verdicts and the score are the original's; the judge prompt is ours, or the original where its file is named.
"""

import re
from collections.abc import Callable, Sequence

from sao_lib.chunks import in_chunks
from sao_lib.engines import Conversation, Engine, seed_for, user_turn, was_asked
from sao_lib.engines.chat import Message, fill_apart
from sao_lib.errors import SaoError
from sao_lib.evaluate.grading import as_asked, by_id
from sao_lib.evaluate.instruments import Triple
from sao_lib.files import Record
from sao_lib.runs import Run
from sao_lib.settings import ROOT, Policy
from sao_lib.sources import fetch, load_rows, refused, text_of
from sao_lib.yaml_files import read_yaml

# Verdict -> (A's share of the win, how often the game counts); a strong verdict counts three times.
VERDICTS = {"A>>B": (1.0, 3), "A>B": (1.0, 1), "A=B": (0.5, 1), "B>A": (0.0, 1), "B>>A": (0.0, 3)}
VERDICT = re.compile(r"\[\[([AB<>=]+)\]\]")
QUOTED = re.compile(r"""^[^\S\n]*>.*$|["'`“‘]\[\[[AB<>=]+\]\][.,]?["'`”’]""", re.MULTILINE)  # what an answer said
ENDING = 3  # lines that are no blank ones, in which a verdict may stand
OURS = "params/templates/arena_hard.yaml"
ROUNDS = 1000  # the original's leaderboard uses 100
BOOTSTRAP_SEED = 0

Margins = Callable[[list[Triple]], list[float]]


def load_questions(source: str, baseline: str | None, n: int) -> list[Record]:
    """The first n rows {question_id, prompt, baseline}; the baseline's answers from its own file, or the questions'.

    Reads the schema of v0.1 (`question_id`, `turns`, answers in `choices`) and the repository's later one (`uid`,
    `prompt`, `answer`). Raises SaoError when a question has no baseline answer.
    """
    rows = load_rows(source, unique=["question_id", "uid"])
    if len(rows) < n:
        raise SaoError(f"{source} has {len(rows)} questions, fewer than chat_benchmarks.arena_hard_n = {n}.")
    answers = {_id(row): _answer(baseline, row) for row in load_rows(baseline)} if baseline else {}
    questions = [
        {
            "question_id": _id(row),
            "prompt": _prompt(source, row),
            "baseline": answers.get(_id(row), row.get("baseline")),
        }
        for row in rows[:n]
    ]
    lacking = next((q["question_id"] for q in questions if not q["baseline"]), None)
    if lacking is not None:
        raise SaoError(f"Question {lacking} of {source} has no baseline answer in {baseline or 'the same file'}.")
    return questions


def _prompt(source: str, row: Record) -> str:
    if "turns" not in row:
        return text_of(source, row, "prompt")
    try:
        return text_of(source, row["turns"][0], "content")
    except (AttributeError, IndexError, KeyError, TypeError):
        raise refused(source, row, "turns must be a list of {content}") from None


def _id(row: Record) -> str:
    return str(row.get("question_id", row.get("uid")))


def _answer(source: str, row: Record) -> str:
    try:
        if "choices" not in row:
            return str(row["answer"])
        content = row["choices"][0]["turns"][0]["content"]
        return str(content["answer"] if isinstance(content, dict) else content)
    except (IndexError, KeyError, TypeError):
        raise refused(source, row, "it holds no answer in the form of Arena-Hard") from None


def answer(
    run: Run, engine: Engine, policy: Policy, questions: Sequence[Record], max_tokens: int, seed: int, chunk: int = 32
) -> list[Record]:
    """Write arena_answers.jsonl, {question_id, answer}, at temperature 0."""

    def make(part: Sequence[Record]) -> list[Record]:
        seeds = [seed_for(seed, str(q["question_id"])) for q in part]
        out = engine.generate([user_turn(policy, q["prompt"]) for q in part], max_tokens, 0.0, seeds)
        return [
            {"question_id": q["question_id"], "answer": c.text.strip(), **({"reason": c.reason} if c.reason else {})}
            for q, c in zip(part, out, strict=True)
        ]

    return in_chunks(run, "arena_answers.jsonl", questions, make, chunk)


def load_template(source: str) -> Record:
    """{user, again, system?}: our YAML file, or Arena-Hard's judge_config.yaml with its wording, but our `again`.

    `again` asks for the verdict that a judgment lacks; the original's stands in its code and not in its file.
    """
    template = read_yaml(fetch(source))
    if "prompt_template" not in template:
        return template
    text = template["prompt_template"][0]
    for theirs, ours in {"{question_1}": "{prompt}", "{answer_1}": "{answer_a}", "{answer_2}": "{answer_b}"}.items():
        text = text.replace(theirs, ours)
    return {"system": template["system_prompt"], "user": text, "again": read_yaml(ROOT / OURS)["again"]}


def request(template: Record, prompt: str, answer_a: str, answer_b: str) -> Conversation:
    """The judge prompt for two answers in the order given."""
    values = {"prompt": prompt, "answer_a": answer_a, "answer_b": answer_b}
    return as_asked(template.get("system"), fill_apart(template["user"], {}, values))


def parse_verdict(text: str) -> str | None:
    """The one verdict in a judge's text; None where there is none, or two different ones, or one of another form.

    Only the last three lines count, and no quotation: what stands before is of the answers as often as of the judge.
    """
    found = set(VERDICT.findall(_ending(text)))
    verdict = found.pop() if len(found) == 1 else None
    return verdict if verdict in VERDICTS else None


def _ending(text: str) -> str:
    """Where a judge says its verdict: the last lines, without what they quote."""
    lines = [line for line in QUOTED.sub("", text).splitlines() if line.strip()]
    return "\n".join(lines[-ENDING:])


def play(
    run: Run,
    engine: Engine,
    template_file: str,
    questions: Sequence[Record],
    answers: Sequence[Record],
    reading: str,
    seed: int,
    margins: Margins | None = None,
    max_tokens: int = 4096,
    attempts: int = 2,
    chunk: int = 32,
) -> list[Record]:
    """Write arena_games.jsonl, {question_id, games: [v1, v2]}: game 1 has the baseline as A, game 2 the model as A.

    Reading "text" parses what the judge writes at temperature 0, cut at `max_tokens`; a judgment that holds no verdict
    is continued until there have been `attempts` (the original: 4096 and 2); null is no verdict. Reading "logprob", for
    judges too small to write one, takes `margins` of (prompt, baseline's answer, model's answer), positive where the
    model's is better: an instrument without orders, which decides both games, never strongly.
    """
    template, found = load_template(template_file), by_id(questions, answers, "question_id", "arena_answers.jsonl")
    if reading == "logprob" and margins is None:
        raise SaoError("Arena-Hard with reading: logprob needs a calibrated instrument that gives margins.")

    def make(part: Sequence[Record]) -> list[Record]:
        there = [q for q in part if not found[q["question_id"]].get("reason")]
        played = {row["question_id"]: row for row in made(there)} if there else {}
        return [played.get(q["question_id"], {"question_id": q["question_id"], "games": [None, None]}) for q in part]

    def made(part: Sequence[Record]) -> list[Record]:
        triples: list[Triple] = [(q["prompt"], q["baseline"], found[q["question_id"]]["answer"]) for q in part]
        if reading == "logprob" and margins:
            games = _by_margin(triples, margins)
        else:
            asked = [
                request(template, *order) for x, base, own in triples for order in ((x, base, own), (x, own, base))
            ]
            seeds = [seed_for(seed, str(q["question_id"]), game) for q in part for game in (1, 2)]
            read = _verdicts(engine, template, asked, max_tokens, seeds, attempts)
            games = [read[i : i + 2] for i in range(0, len(read), 2)]
        return [{"question_id": q["question_id"], "games": g} for q, g in zip(part, games, strict=True)]

    return in_chunks(run, "arena_games.jsonl", questions, make, chunk)


def _verdicts(
    engine: Engine, template: Record, asked: list[Conversation], max_tokens: int, seeds: list[int], attempts: int
) -> list[str | None]:
    """A verdict for each request; a judge whose text ends without one of any form, or was cut, is asked to go on."""
    texts, asked, left = [""] * len(asked), list(asked), list(range(len(asked)))
    cut = [True] * len(asked)
    for _ in range(attempts):
        again: list[int] = []
        out = engine.generate([asked[i] for i in left], max_tokens, 0.0, [seeds[i] for i in left]) if left else []
        for i, completion in zip(left, out, strict=True):
            if completion.reason:
                continue
            texts[i], cut[i] = f"{texts[i]}\n{completion.text}", not completion.finished
            again.append(i)
            more: list[Message] = [{"role": "assistant", "content": completion.text.strip()},
                                   {"role": "user", "content": template["again"]}]  # fmt: skip
            asked[i] = Conversation((*asked[i].messages, *more))
        left = [i for i in again if cut[i] or not VERDICT.search(_ending(texts[i]))]
    return [None if was_cut else parse_verdict(text) for text, was_cut in zip(texts, cut, strict=True)]


def _by_margin(triples: list[Triple], margins: Margins) -> list[list[str | None]]:
    """Both games of each triple by one margin; equal answers tie and an empty one loses without being asked.

    No verdict where the instrument could not be asked.
    """
    asked = [t for t in triples if t[1] and t[2] and t[1] != t[2]]
    found = iter(margins(asked) if asked else [])
    games: list[list[str | None]] = []
    for triple in triples:
        _, base, own = triple
        margin = next(found) if base and own and base != own else float(bool(own)) - float(bool(base))
        if not was_asked(margin):
            games.append([None, None])
            continue
        games.append(["A=B", "A=B"] if margin == 0 else ["B>A", "A>B"] if margin > 0 else ["A>B", "B>A"])
    return games


def score(games: Sequence[Record]) -> Record:
    """{score, low, high, n, unparsed}: percent, with a 95% interval; null where no game has a verdict.

    `score` is the Bradley-Terry probability that the model beats the baseline. The original fits it by a logistic
    regression to all games. Against one baseline every game then has the same input and one coefficient is free, the
    log-odds of a win, so the likelihood is greatest where that probability is the weighted share of wins, ties
    counting half: the closed form used here, which also holds where every game is won and the regression diverges.

    The interval resamples questions, because the games of one are not independent. The original's leaderboard
    resamples games, a strong verdict as three of them, and so prints narrower ones. `n` counts questions,
    `unparsed` games without a verdict.
    """
    import numpy as np

    wins, weights = np.zeros(len(games)), np.zeros(len(games))
    for number, row in enumerate(games):
        for verdict, model_is_a in zip(row["games"], (False, True), strict=True):
            share, weight = VERDICTS.get(verdict, (0.0, 0))
            wins[number] += weight * (share if model_is_a else 1 - share)
            weights[number] += weight
    unparsed = sum(verdict is None for row in games for verdict in row["games"])
    if not weights.sum():
        return {"score": None, "low": None, "high": None, "n": len(games), "unparsed": unparsed}
    drawn = np.random.default_rng(BOOTSTRAP_SEED).integers(len(games), size=(ROUNDS, len(games)))
    total = weights[drawn].sum(axis=1)
    low, high = interval(100 * wins[drawn].sum(axis=1)[total > 0] / total[total > 0])
    mean = float(100 * wins.sum() / weights.sum())
    return {"score": mean, "low": low, "high": high, "n": len(games), "unparsed": unparsed}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 2.5% and 97.5% quantiles, interpolated linearly."""
    import numpy as np

    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
