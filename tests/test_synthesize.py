"""Personas, templates and the prompts that come of them."""

import itertools
import json

import numpy as np
import published
import pytest

from sao_lib.engines import seed_for
from sao_lib.errors import SaoError
from sao_lib.method import synthesize
from sao_lib.settings import PARAMS, Settings
from sao_lib.sources import load_rows
from sao_lib.yaml_files import read_yaml

PERSONAS = "params/data/personas.jsonl"
INSTRUCTIONS = "alpaca_eval/alpaca_eval_gpt4_baseline.json"


def test_the_suites_personas_are_many_and_no_two_nearly_the_same() -> None:
    rows = [json.loads(line) for line in (PARAMS / "data" / "personas.jsonl").read_text().splitlines()]
    assert len(rows) >= 500
    words = [frozenset(r["persona"].lower().split()) for r in rows]
    assert max(len(a & b) / len(a | b) for a, b in itertools.combinations(words, 2)) < 0.5


def test_sampling_is_seeded_and_without_replacement() -> None:
    one, two = (synthesize.load_personas(PERSONAS, 100, 3) for _ in range(2))
    assert one == two
    assert len({p["id"] for p in one}) == 100
    assert one != synthesize.load_personas(PERSONAS, 100, 4)


def test_more_personas_than_there_are_is_refused() -> None:
    with pytest.raises(SaoError, match="fewer than synthesize.n = 100000"):
        synthesize.load_personas(PERSONAS, 100_000, 0)


def test_the_papers_template_is_one_message_and_the_few_shot_one_begins_the_answer() -> None:
    plain = synthesize.persona_request(read_yaml(PARAMS / "templates" / "persona.yaml"), "a baker")
    assert len(plain.messages) == 1
    assert plain.prefill == ""
    few = synthesize.persona_request(read_yaml(PARAMS / "templates" / "persona_few_shot.yaml"), "a baker")
    assert len(few.messages) == 7
    assert few.prefill == "User prompt: As a baker, I"


@pytest.mark.parametrize(
    ("prompt", "finished", "reason"),
    [
        ("As a baker, I need a short plan for my first week.", True, None),
        ("As a baker, I need a short plan for my first week.", False, "not finished"),
        ("As a baker, I", True, "length"),
        ("Can you please provide a detailed guide to baking bread?", True, None),
        ("As a baker, I write about the persona of a guest: what should I ask it?", True, None),
        ("How can I help you today? I know bread well.", True, "role slip"),
        ("As an AI language model, I have no bakery.", True, "role slip"),
        ("Guess a prompt that the baker may ask you to do.", True, "about the task"),
        (" ".join(["bread and butter and jam and tea"] * 6), True, "repeats itself"),
    ],
)
def test_unusable_prompts_have_a_reason(prompt: str, finished: bool, reason: str | None) -> None:
    assert synthesize.reject_reason(prompt, finished, 150) == reason


def test_a_long_prompt_has_a_fault_only_beyond_the_profiles_limit() -> None:
    long = " ".join(f"word{n}" for n in range(180))
    assert synthesize.reject_reason(long, True, 150) == "length"
    assert synthesize.reject_reason(long, True, 200) is None


def test_where_faults_are_only_logged_every_prompt_that_says_something_is_answered(cpu: Settings) -> None:
    made = [("As a baker, I", "length"), ("What is rye?", None), ("", "length"), ("I cannot do that.", "length")]
    rows = [{"id": f"p{n}", "prompt": prompt, "reason": reason} for n, (prompt, reason) in enumerate(made)]
    dropped = synthesize.usable(rows, cpu.synthesize)
    logged = synthesize.usable(rows, cpu.synthesize.model_copy(update={"filter": "log"}))
    assert [row["id"] for row in dropped] == ["p1"]
    assert [row["id"] for row in logged] == ["p0", "p1", "p3"]


@pytest.mark.parametrize("source", ["params/data/chat.json", "params/data/arena_hard.jsonl"])
def test_ordinary_requests_are_no_slips(source: str) -> None:
    texts = [str(row.get("instruction") or row.get("prompt")) for row in load_rows(source)]
    assert {synthesize.reject_reason(text, True, 10_000) for text in texts} <= {None, "length", "repeats itself"}


@published.needs("the prompt filter on AlpacaEval's instructions", INSTRUCTIONS)
def test_no_instruction_of_alpaca_eval_is_taken_for_a_slip() -> None:
    texts = [row["instruction"] for row in load_rows(str(published.path(INSTRUCTIONS)))]
    assert {synthesize.reject_reason(text, True, 10_000) for text in texts} <= {None, "length", "repeats itself"}


def test_prompt_is_what_follows_the_mark_with_its_lines() -> None:
    assert synthesize.prompt_from('Sure!\nUser prompt: "Tell me\nabout bread."\n') == "Tell me\nabout bread."


def test_seeds_differ_by_row_and_sample_only() -> None:
    seeds = {seed_for(1, f"p{n}", k) for n in range(200) for k in (1, 2)}
    assert len(seeds) == 400
    assert seed_for(1, "p1", 1) == seed_for(1, "p1", 1)


def test_repetition_is_an_exact_match_after_normalising() -> None:
    assert synthesize.repetition(["Why  is it?", "why is it?", "Why not?", "Who?"]) == 0.25


def test_near_duplicates_differ_in_a_few_words() -> None:
    one = "Summarize the main plot points of the novel, focusing on the relationship between Elizabeth and Darcy."
    other = one.replace("the relationship", "the growing relationship")
    assert synthesize.near_duplicates([one, other, "Why is the sky blue?"]) == pytest.approx(1 / 3)
    assert synthesize.repetition([one, other]) == 0


def test_diversity_is_the_mean_distance_between_two_prompts() -> None:
    vectors = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    assert synthesize.diversity(vectors) == pytest.approx(1 - (0.0 + 0.6 + 0.8) / 3)
    assert synthesize.diversity(np.array([[1.0, 0.0]] * 4)) == pytest.approx(0)
    assert synthesize.diversity(vectors[:1]) == 0


def test_the_most_repeated_prompts_are_counted_after_normalising() -> None:
    assert synthesize.most_repeated(["Why?", "why? ", "Who?", "WHY?"], 1) == [("Why?", 3)]


def test_prompts_of_a_data_set_are_taken_as_they_are(cpu: Settings) -> None:
    settings = cpu.synthesize.model_copy(update={"source": "dataset", "n": 12})
    rows = synthesize.asked(settings, 1)
    known = {r["prompt"].strip() for r in load_rows(cpu.synthesize.dataset)}
    assert len({row["id"] for row in rows}) == 12
    assert all(row["prompt"] in known and row["persona"] is None for row in rows)


def test_without_personas_every_request_is_the_same(cpu: Settings) -> None:
    settings = cpu.synthesize.model_copy(update={"source": "random", "n": 3})
    template = read_yaml(PARAMS / "templates" / "random_few_shot.yaml")
    first, *rest = [synthesize.persona_request(template, row["persona"]) for row in synthesize.asked(settings, 1)]
    assert rest == [first] * 2
    assert "persona" not in first.messages[-1]["content"]


def test_a_base_models_prompt_ends_where_its_line_does() -> None:
    assert synthesize.ended(" need bread.\n\nGuess a prompt", False, "\n") == (" need bread.", True)
    assert synthesize.ended(" need bread", False, "\n") == (" need bread", False)
    assert synthesize.ended(" need bread", True, None) == (" need bread", True)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("One. Two! Three?", "One. Two!"),
        ('He said "No." Then he left. And slept.', 'He said "No." Then he left.'),
        ("Version 2.5 is out. It works", "Version 2.5 is out. It works"),
        ("Only one.", "Only one."),
    ],
)
def test_a_response_ends_after_its_second_sentence_where_the_profile_says_so(text: str, kept: str) -> None:
    assert synthesize.first_sentences(text, 2) == kept
    assert synthesize.first_sentences(text, None) == text
