"""The user's own templates and data: what is wrong in one is a sentence before anything starts, one line a mistake."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from sao_lib import settings, yaml_files
from sao_lib.__main__ import main


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one sentence with which a plan is refused."""
    assert main(["plan", *words]) == 1
    text = capsys.readouterr().err.strip()
    assert text.startswith("Error: ")
    assert "\n" not in text
    return text


def changed_template(file: str, **changes: Any) -> str:
    return yaml.safe_dump({**yaml_files.read_yaml(settings.PARAMS / "templates" / file), **changes})


def of_persona(**changes: Any) -> tuple[str, str, str]:
    return "smoke", "synthesize.template", changed_template("persona_few_shot.yaml", **changes)


def of_ranking(**changes: Any) -> tuple[str, str, str]:
    given = "evaluate.judges=[ranking] evaluate.judge_template"
    return "smoke", given, changed_template("ranking_small.yaml", **changes)


def of_chat(text: str) -> tuple[str, str, str]:
    return "smoke", "policy.chat_template", text


def benchmark(parameter: str, *rows: str) -> tuple[str, str, str]:
    smallest = "chat_benchmarks.mt_bench_n=1 chat_benchmarks.arena_hard_n=1 math500.n=1 logits.prompts=1"
    section = "" if parameter.startswith("math500") else "chat_benchmarks."
    return "smoke-benchmarks", f"{smallest} {section}{parameter}", "\n".join(rows)


def rows(parameter: str, row: str) -> tuple[str, str, str]:
    return "smoke", parameter, "\n".join(row % (n, n) for n in range(10))


PLAIN = (settings.PARAMS / "templates" / "plain.jinja").read_text()
EACH = "{% for m in messages %}"
IDS = "question_id must be a text or a number"
QUESTION = '{"question_id": 1, "category": "math", "turns": ["one", "two"]}'
PROBLEM = '{"unique_id": "a", "problem": "1 + 1", "answer": "2", "level": 1}'
FILES: list[tuple[tuple[str, str, str], str]] = [
    (of_persona(user=5), "whose 'user' is 5 and must be a text"),
    (of_persona(user="Write a prompt."), "whose 'user' lacks {persona}, where a persona is put in"),
    (of_persona(user="{Persona}"), "whose 'user' lacks {persona}"),
    (of_persona(prefill=None), "whose 'prefill' is None and must be a text"),
    (of_persona(examples="abc"), "whose 'examples' is 'abc' and must be a list of {persona, prompt}"),
    (of_persona(examples=[{"persona": "a", "prompt": 5}]), "and must be a list of {persona, prompt}"),
    (of_persona(stop=5), "whose 'stop' is 5 and must be a text"),
    (of_ranking(user="{prompt} {first}"), "whose 'user' lacks {second}"),
    (of_ranking(criteria="relevance"), "whose 'criteria' is 'relevance' and must be a list of texts"),
    (of_ranking(labels=["A"]), "whose 'labels' is ['A'] and must be a list of two different labels"),
    (of_ranking(labels=["A", "A"]), "must be a list of two different labels"),
    (of_ranking(labels="AB"), "must be a list of two different labels"),
    (of_ranking(prefill=[]), "whose 'prefill' is [] and must be a text"),
    (of_chat(EACH), "of policy cannot be filled in: Unexpected end of template"),
    (of_chat("{{ foo() }}"), "of policy cannot be filled in: 'foo' is undefined"),
    (of_chat("{% include '/etc/passwd' %}"), "of policy cannot be filled in: no loader"),
    (of_chat("{{ ''.__class__.__mro__ }}"), "of policy cannot be filled in: access to attribute '__class__'"),
    (of_chat("{{ raise_exception('not me') }}"), "of policy cannot be filled in: not me"),
    (of_chat("{{ messages[0]['content'] }}"), "leaves out the user's message 'a first question'"),
    (of_chat(EACH + "{{ m.content if m.role != 'system' }}{% endfor %}"), "leaves out the system's"),
    (of_chat("\ufeff" + PLAIN), "begins with a byte order mark"),
    (benchmark("mt_bench", QUESTION.replace('["one", "two"]', "[1, 2]")), "turns must be a list"),
    (benchmark("mt_bench", QUESTION.replace("1", "null")), IDS),
    (benchmark("mt_bench", QUESTION.replace("1", "[1]")), IDS),
    (benchmark("mt_bench", QUESTION, QUESTION), "line 2: its question_id 1 stands in line 1 already"),
    (benchmark("mt_bench", QUESTION[:-1] + ', "reference": ["one"]}'), "reference must be a list"),
    (benchmark("arena_hard", '{"question_id": 1, "prompt": "q"}'), "has no baseline answer"),
    (benchmark("arena_hard", '{"prompt": "q", "baseline": "a"}'), IDS),
    (benchmark("arena_hard_template", "user: '{prompt}'\nagain: go on"), "lacks {answer_a}"),
    (benchmark("arena_hard_template", "prompt_template: []"), "neither in our form nor in"),
    (benchmark("mt_bench_template", "user_1: '{question_1}'"), "which has no 'user_2'"),
    (benchmark("math500.problems", PROBLEM.replace('"2"', "2")), "answer is 2 and must be a text"),
    (benchmark("math500.problems", PROBLEM.replace('"unique_id"', '"id"')), "unique_id must be a text or a number"),
    (benchmark("math500.problems", PROBLEM.replace(', "level": 1', "")), "line 1: it has no level"),
    (benchmark("math500.template", "user: Solve it."), "whose 'user' lacks {problem}"),
    (rows("evaluate.n=4 evaluate.reference=us evaluate.instructions",
          '{"instruction": "q%s", "output": %s, "generator": "us"}'), "output is 0 and must be a text"),
    (rows("synthesize.personas", '{"id": 1, "persona": "a%s%s"}'), 'its id 1 stands in line 1 already'),
    (rows("train.data", '{"prompt": "p%s", "chosen": "a%s", "rejected": "b"}'), "prompt must be a text, chosen and"),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "sentence"), FILES, ids=[sentence[:40] for _, sentence in FILES])
def test_the_users_own_files_are_read_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: tuple[str, str, str], sentence: str
) -> None:
    table, parameter, content = asked
    kind = ".jinja" if parameter.endswith("chat_template") else ".yaml" if "template" in parameter else ".jsonl"
    file = tmp_path / f"mine{kind}"
    file.write_text(content)
    text = refusal(capsys, table, f"--changes={parameter}={file}")
    assert sentence in text
    assert "delete" not in text


def test_a_template_without_a_place_for_criteria_cannot_leave_one_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(changed_template("ranking_small.yaml", user="{prompt} {first} {second}"))
    given = f"--changes=judge.template={tmp_path / 'mine.yaml'}"
    assert main(["plan", "table13", given]) == 0
    assert "lacks {criteria}" in refusal(capsys, "table13", given + " judge.without_criterion=1")
