"""What people get wrong, one line a mistake: each is one sentence, before anything starts, and nothing is lost."""

import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sao_lib import files, runs, settings, yaml_files
from sao_lib.__main__ import main
from sao_lib.engines import models
from sao_lib.errors import SaoError
from sao_lib.launch import cluster, graph, reproduce
from sao_lib.plan import experiment, layers, workload
from sao_lib.settings import ROOT

OWN = """
title: A table of one's own
question: Does it run?
columns: [wr]
rows:
  length: {label: Length, judge: {source: length, model: null, engine: null}}
"""


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A params/ folder of one's own: the suite's, with experiments/mine.yaml as the only experiment."""
    folder = tmp_path / "params"
    (folder / "experiments").mkdir(parents=True)
    shutil.copytree(settings.PARAMS / "profiles", folder / "profiles")
    for name in ("paper.yaml", "shows.yaml", "rates.yaml", "models.yaml"):
        (folder / name).symlink_to(settings.PARAMS / name)
    for module in (yaml_files, experiment):
        monkeypatch.setattr(module, "PARAMS", folder)
    (folder / "experiments" / "mine.yaml").write_text(OWN)
    return folder


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one sentence with which a command refuses; it must be one line, without a traceback."""
    assert main(list(words)) == 1
    text = capsys.readouterr().err.strip()
    assert text.startswith("Error: ")
    assert "\n" not in text
    return text


COMMAND_LINE = [
    ("train.beta", "not of the form key.subkey=value"),
    ("seed = 7", "not of the form key.subkey=value (no spaces round =)"),
    ("=3", "not of the form key.subkey=value"),
    ("train..beta=3", "not of the form key.subkey=value"),
    ("--seed=7", "Unknown parameter '--seed' in the command line"),
    ("policy.system='open", "a quote is not closed"),
    ("train=3 train.beta=2", "sets train and train.beta, which contradict each other"),
    ("train.beta=2 train=3", "sets train.beta and train, which contradict each other"),
    ("seed=1 seed=2", "sets seed and seed, which contradict each other"),
    ("train='{beta: 1, beta: 2}'", "The value of 'train' on the command line is not valid YAML"),
    ("seed=" + 9000 * "9", "The value of 'seed' on the command line is not valid YAML"),
    ("seed=" + 2000 * "[", "The value of 'seed' on the command line is not valid YAML"),
    ("seed=yes", "Parameter 'seed' in the command line is True: it must be a number"),
    ("train.learning_rate=.inf", "input should be a finite number"),
    ("evaluate.temperature=.nan", "'evaluate.temperature' in the command line is nan"),
    ("train.attention=fast", "'train.attention' in the command line is 'fast': input should be 'flash_attention_2'"),
    ("judge.audit_questions=0", "greater than or equal to 1"),
    ("train.save_steps=0", "greater than or equal to 1"),
    ("synthesize.n=5000", "synthesize.n is 5000 and params/data/personas.jsonl has 560 usable rows"),
    ("synthesize.source=dataset synthesize.n=100", "params/data/preferences.jsonl has 56 usable rows"),
    ("evaluate.n=5000", "evaluate.n is 5000 and params/data/chat.json has "),
    ("evaluate.reference=nobody", "evaluate.reference is 'nobody', who answers nothing in params/data/chat.json"),
    ("evaluate.judges=[nope]", "there is no instrument 'nope'; there are: ranking"),
    ("evaluate.judges=[reverse+nope]", "there is no instrument 'nope'"),
    ("evaluate.judges=[fitted:ranking+reverse]", "there is no instrument 'ranking'; there are: "),
    ("train.held_out=500", "gives 8 pairs at most, and train.held_out = 500"),
    ("train.pairs=13", "gives 8 pairs at most, and train.held_out = 2 with train.pairs = 13 needs 15"),
    ("train.global_batch=64", "train.global_batch = 64 needs 66"),
    ("engine.max_model_len=64", "more than engine.max_model_len = 64"),
    ("synthesize.max_response_tokens=2000", "2000 tokens after 80, more than engine.max_model_len = 1024"),
    ("evaluate.max_tokens=1024", "evaluate.max_tokens asks for 1024 tokens"),
    ("judge.reading=text judge.max_tokens=1000", "asks for 1000 tokens after 48, more than engine.max_model_len"),
    ("evaluate.judge_template=params/templates", "params/templates, named in the parameters of evaluate"),
    ("synthesize.template=params/templates/ranking.yaml", "which has no 'examples'; such a template has: user"),
    ("synthesize.personas=params/data", "params/data, named in the parameters of synthesize 'policy', is a folder"),
    ("synthesize.personas=nowhere.jsonl", "nowhere.jsonl, named in the parameters of synthesize 'policy', does not"),
    ("synthesize.personas=/dev/zero", "/dev/zero, named in the parameters of synthesize 'policy', is no ordinary file"),
    ("synthesize.personas=" + 300 * "a", "can be no file: File name too long"),
    ("synthesize.personas=hub:x", "hub:x, named in the parameters of synthesize 'policy', is not of the form hub:org/"),
    ("train.data=github:a/b@c/d", "is not of the form github:org/repo@commit/file"),
    ("policy.chat_template=/dev/null", "is no ordinary file"),
    ("policy.chat_template=params/templates/ranking.yaml", "of policy leaves out the system's message"),
    ("train.beta=!!float 3", "not valid YAML: !!float (a value does not fit the kind that its !!tag says)"),
    ("train.beta=!!bool", "a value does not fit the kind"),
    ("seed=!!timestamp x", "a value does not fit the kind"),
    ("train='&a {beta: *a}'", "*a holds itself"),
    ("seed=010", "010 would be read to the base 8; write it without"),
    ("train.beta=1:30.5", "1:30.5 would be read to the base 60"),
    ("engine.options={a: 1}", "not valid YAML: {a: (expected the node content, but found '<stream end>'; a value with"),
    ("seed=-5", "greater than or equal to 0"),
    ("seed=99999999999999999999", "less than 2147483648"),
    ("replicates=1000000", "less than or equal to 100"),
    ("judge.without_criterion=true", "it must be a number"),
    ("evaluate.judges=[[x]]", "Parameter 'evaluate.judges.0' in the command line is ['x']"),
    ("synthesize.generator={}", "Parameter 'synthesize.generator.model' is missing in the command line"),
    ("machine.stages.nope={}", "Parameter 'machine.stages.nope' in the command line"),
    ("train=[]", "Parameter 'train' in the command line is []: it must be a mapping of parameters"),
    ("train=", "Parameter 'train' in the command line is None: it must be a mapping of parameters"),
    ("train.beta=" + 400 * "9", f"is {80 * '9'}...: input should be"),
    (5000 * "a" + "=1", f"Unknown parameter '{80 * 'a'}...'"),
    ("train.beta='\"\\e[31m\"'", "is '\\x1b[31m': input should be"),
    ("'\u202eseed'=7", "'\\u202eseed=7' on the command line is not of the form"),
    ("evaluate.labelled_questions=61", "evaluate.labelled_questions is 61 and params/data/labelled_answers.jsonl has"),
    ("evaluate.gold_questions=4999", "evaluate.gold_questions is 4999 and params/data/labelled_answers.jsonl has"),
    ("judge.audit_questions=99", "judge.audit_questions is 99 and params/data/labelled_answers.jsonl has"),
    ("evaluate.judges=[relevance,relevance]", "evaluate.judges has 'relevance' twice"),
    ("evaluate.judges=[relevance+relevance]", "in which an instrument stands twice"),
    ("engine.kind=openai", "engine.kind is openai, whose models are named openai/..., and the model is embedded/"),
    ("policy.model=embedded/all-minilm-l6-v2", "which compares texts and writes none"),
    ("policy.model=openai/gpt-4o", "which an API keeps; train needs a model whose weights are here"),
    ("synthesize.source=random", "whose 'user' has {persona}, and synthesize.source random has none"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "sentence"), COMMAND_LINE, ids=[given[:40] for given, _ in COMMAND_LINE])
def test_the_command_line(capsys: pytest.CaptureFixture[str], given: str, sentence: str) -> None:
    assert sentence in said(capsys, "plan", "smoke", f"--changes={given}")


def test_what_is_right_is_taken_as_it_was_typed(capsys: pytest.CaptureFixture[str]) -> None:
    given = "policy.system='two $words; & `more`' train='{beta: 2}' train.gamma=1 evaluate.judges=[relevance]"
    assert main(["plan", "smoke", f"--changes={given}"]) == 0
    assert "4 rows" in capsys.readouterr().out


def test_other_benchmarks_are_looked_at_too(capsys: pytest.CaptureFixture[str]) -> None:
    for given in ("math500.n=500", "chat_benchmarks.mt_bench_n=80", "logits.prompts=5000"):
        assert f"{given.replace('=', ' is ')} and " in said(capsys, "plan", "smoke-benchmarks", "--set", given)
    assert "is not below logits.high" in said(capsys, "plan", "smoke-benchmarks", "--set", "logits.low=60")


EXPERIMENTS: list[tuple[str | bytes, str]] = [
    ("title: [", "mine.yaml, line 1, is not valid YAML"),
    (OWN + "title: Another\n", "the key 'title' stands twice"),
    (OWN + "  length: {label: Again}\n", "mine.yaml, line 7, is not valid YAML: the key 'length' stands twice"),
    (OWN + "settings: {cpu: {seed: 1, seed: 2}}\n", "the key 'seed' stands twice"),
    (OWN + "setings: {}\n", "Unknown key 'setings'"),
    (OWN + "settings: {cpuu: {seed: 1}}\n", "settings has 'cpuu', which is no profile"),
    (OWN + "settings: {paper: {synthesise: {n: 3}}}\n", "Unknown parameter 'synthesise' in params/experiments/mine"),
    (OWN + "settings: [1]\n", "Key 'settings'"),
    ("", "must hold a mapping of keys, found NoneType"),
    ("- 1\n", "must hold a mapping of keys, found list"),
    (OWN.encode("utf-16"), "is not UTF-8 at byte 0"),
    (OWN.replace("own", "öwn").encode("latin-1"), "is not UTF-8 at byte"),
    ("title: " + 2000 * "[", "is not valid YAML"),
    ("title: 2021-13-45\n", "is not valid YAML"),
    ("title: !!python/object:os.system {}\n", "is not valid YAML: could not determine a constructor"),
    (OWN.split("rows:")[0], "Key 'rows' is missing"),
    (OWN.split("rows:")[0] + "rows: [a]\n", "Key 'rows'"),
    (OWN.split("rows:")[0] + "rows: {1: {label: One}}\n", "Key 'rows.1"),
    (OWN.split("rows:")[0] + "rows: {a: null}\n", "Key 'rows.a'"),
    (OWN.split("rows:")[0] + "rows: {a: {label: 5}}\n", "Key 'rows.a.label'"),
    (OWN + "replicates: yes\n", "Key 'replicates"),
    (OWN + "replicates: 1000000\n", "Key 'replicates' in params/experiments/mine.yaml is 1000000"),
    (OWN.replace("Length,", "Length, iterations: 101,"), "Key 'rows.length.iterations'"),
    (OWN.replace("Length,", "Length, profiles: [],"), "Key 'rows.length.profiles'"),
    (OWN.replace("Length,", "Length, profiles: [paper],"), "No row of mine is for profile cpu; see `profiles`"),
    (OWN.replace("Length,", "'',"), "Key 'rows.length.label'"),
    (OWN.replace("  length:", "  a b:"), "'a b' can be no row's name"),
    (OWN.replace("  length:", "  'a#2':"), "'a#2' can be no row's name"),
    (OWN.replace("  length:", '  "a\\nb":'), "'a\\nb' can be no row's name"),
    (OWN.replace("  length:", "  ../x:"), "'../x' can be no row's name"),
    (OWN + "  other: {label: Length}\n", "two rows have the label 'Length'"),
    (OWN + "notebook: 01_synthesize\n", "'01_synthesize' is none of notebooks/ that makes a table: 05_ablate"),
    (OWN + "notebook: ../notebooks/05_ablate\n", "is none of notebooks/"),
    (OWN + "claims: [{sentence: s, holds: length.wr > length.wr}]\n", "compares a row with itself"),
    (OWN + f"claims: [{{sentence: s, holds: length.wr > {400 * '9'}}}]\n", "must read 'row.metric"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "sentence"), EXPERIMENTS, ids=[sentence[:40] for _, sentence in EXPERIMENTS])
def test_experiment_files(params: Path, capsys: pytest.CaptureFixture[str], text: str | bytes, sentence: str) -> None:
    file = params / "experiments" / "mine.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert sentence in said(capsys, "plan", "mine")


PROFILES = [
    ("extends: mine\n", "mine.yaml extends itself: mine extends mine"),
    ("extends: other\n", "extends itself: "),
    ("extends: laptop\n", "There is no profile 'laptop'"),
    ("extends: [cpu]\n", "extends is ['cpu']; it must be the name of another profile"),
    ("extends: cpu\nseed: 1\nseed: 2\n", "mine.yaml, line 3, is not valid YAML: the key 'seed' stands twice"),
    ("extends: cpu\non: 1\n", "params/profiles/mine.yaml has the key True, which is no name"),
    ("extends: cpu\ntrain: {3: 1}\n", "params/profiles/mine.yaml has the key 3"),
    ("extends: cpu\npresets: {a: {settings: {}, trained: 'no'}}\n", "'presets.a.trained'"),
    ("extends: paper\ntrain: {processes: 8, micro_batch: 1}\n", "train.processes is 8, machine.gpus is 4"),
    ("extends: cpu\ntrain: &t {beta: *t}\n", "mine.yaml, line 2, is not valid YAML: *t holds itself"),
    ("extends: cpu\ntrain: &t {<<: *t}\n", "*t holds itself"),
    ("extends: cpu\nseed: !!bool maybe\n", "is not valid YAML: a value does not fit the kind that its !!tag says"),
    ("extends: cpu\nseed: 1:30\n", "mine.yaml, line 2, is not valid YAML: 1:30 would be read to the base 60"),
    ("extends: cpu\ntrain:\n", "Parameter 'train' in params/profiles/mine.yaml is None: it must be a mapping"),
    ("extends: cpu\njudge: []\n", "Parameter 'judge' in params/profiles/mine.yaml is []: it must be a mapping"),
    ('extends: cpu\n"a\\nb": 3\n', "Unknown parameter 'a\\nb' in params/profiles/mine.yaml"),
    ('extends: cpu\n"a\\e[31mb": 3\n', "Unknown parameter 'a\\x1b[31mb' in params/profiles/mine.yaml"),
]


@pytest.mark.parametrize(("text", "sentence"), PROFILES, ids=[sentence[:40] for _, sentence in PROFILES])
def test_profiles(params: Path, capsys: pytest.CaptureFixture[str], text: str, sentence: str) -> None:
    (params / "profiles" / "mine.yaml").write_text(text)
    (params / "profiles" / "other.yaml").write_text("extends: mine\n")
    assert sentence in said(capsys, "plan", "mine", "--profile=mine")


@pytest.mark.parametrize("value", ["3", "", "[a]"])
def test_a_section_for_a_machine_is_a_mapping(
    params: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    monkeypatch.setattr(layers.machine, "SECTIONS", {"without_bf16": lambda: True, "without_vllm": lambda: False})
    (params / "profiles" / "mine.yaml").write_text(f"extends: cpu\nwithout_bf16: {value}\n")
    assert "mine.yaml, without_bf16 is " in (text := said(capsys, "plan", "mine", "--profile=mine"))
    assert text.endswith("; it must be a mapping of parameters.")


NAMES = [
    (["plan", "table66"], "There is no experiment 'table66'"),
    (["plan", "../profiles/cpu"], "There is no experiment '../profiles/cpu'"),
    (["plan", 5000 * "a"], f"There is no experiment '{80 * 'a'}...' in "),
    (["plan", "mine", "--profile=\x1b[2J\n"], "There is no profile '\\x1b[2J\\n' in "),
    (["plan", "folder"], "There is no experiment 'folder' in "),
    (["plan", "mine", "--profile=../experiments/smoke"], "There is no profile '../experiments/smoke'"),
    (["plan", "all", "--profile="], "There is no profile ''"),
    (["plan", "--", "--help"], "There is no experiment '--help'"),
    (["report", "--profile=nope"], "There is no profile 'nope'"),
    (["doctor", "--profile=nope"], "There is no profile 'nope'"),
    (["reproduce", "mine", "--cluster=cloud"], "There is no cluster 'cloud'"),
    (["reproduce", "mine", "--fresh=new"], "FRESH is 'new'"),
]


@pytest.mark.parametrize(("words", "sentence"), NAMES, ids=[" ".join(words)[:40] for words, _ in NAMES])
def test_names(params: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str) -> None:
    (params / "experiments" / "folder.yaml").mkdir()
    text = said(capsys, *words)
    assert sentence in text
    assert "folder" not in text.partition("there are:")[2]


@pytest.mark.parametrize("broken", ["title: [", OWN + "colums: [wr]\n"])
def test_one_broken_file_is_named_and_the_others_are_planned(
    params: Path, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    (params / "experiments" / "mine.yaml").rename(params / "experiments" / "smoke.yaml")  # which the suite has too
    (params / "experiments" / "broken.yaml").write_text(broken)
    assert main(["plan", "all"]) == 1
    out = capsys.readouterr()
    assert "cpu/smoke" in out.out
    assert out.err.startswith("Error: 1 cannot be planned.\nbroken: ")
    plans, impossible = reproduce._plans("cpu", [*experiment.experiments(), *experiment.unreadable()], [], True)
    assert [plan.experiment for plan in plans] == ["smoke"]
    assert [reason.partition(":")[0] for reason in impossible] == ["broken"]


def test_rates_without_a_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rates.yaml").write_text("dated: 2026-01-01\n")
    monkeypatch.setattr(workload, "PARAMS", tmp_path)
    with pytest.raises(SaoError, match=r"params/rates\.yaml has no section 'api'"):
        workload.rates.__wrapped__()


def test_a_model_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models.yaml").write_text("embedded/mine: {convert: none}\n")
    monkeypatch.setattr(models, "PARAMS", tmp_path)
    with pytest.raises(SaoError, match=r"params/models\.yaml says no package of embedded/mine"):
        models.check("embedded/mine")


# File systems


@pytest.mark.parametrize("inside", ["file", "file/deeper", "/proc/nothing"])
def test_outputs_that_cannot_be_written_are_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], inside: str
) -> None:
    (tmp_path / "file").write_text("somebody's")
    monkeypatch.setattr(reproduce, "OUTPUTS", tmp_path / inside)
    monkeypatch.setattr(reproduce, "run_graph", lambda *_: pytest.fail("started"))
    assert "Cannot write " in said(capsys, "reproduce", "smoke")
    assert (tmp_path / "file").read_text() == "somebody's"


@pytest.mark.parametrize("inside", ["file", "/proc/nothing"])
def test_a_model_cache_that_cannot_be_written_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(models, "CACHE", tmp_path / inside)
    with pytest.raises(SaoError, match="Cannot write "):
        models.check_cache(["embedded/smollm2-135m-instruct"])


def test_what_no_sentence_was_written_for_is_still_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", "/srv/outputs")

    monkeypatch.setattr(reproduce, "show", refused)
    assert said(capsys, "plan", "smoke").startswith("Error: the system refuses /srv/outputs: Permission denied.")


def python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_empty_and_relative_folders_in_the_environment() -> None:
    code = "from sao_lib.runs import OUTPUTS; from sao_lib.engines.models import CACHE; print(OUTPUTS, CACHE, sep='|')"
    assert python(code, SAO_OUTPUTS="", SAO_MODELS="") == f"{ROOT / 'outputs'}|{ROOT / '.cache' / 'models'}"
    assert python(code, SAO_OUTPUTS="a b", SAO_MODELS="c") == f"{ROOT / 'a b'}|{ROOT / 'c'}"


def test_a_full_disk_keeps_whole_rows_and_the_old_file(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for the disk: the system refuses what goes beyond it in the middle of a write."""
    rows, whole = tmp_path / "rows.jsonl", tmp_path / "whole.txt"
    files.append_rows(rows, [{"n": n} for n in range(4)])
    files.write_atomic(whole, "before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (rows.stat().st_size + 5, before[1]))
    try:
        with pytest.raises(SaoError, match=r"Cannot write .*rows\.jsonl: File too large"):
            files.append_rows(rows, [{"n": n} for n in range(4, 99)])
        with pytest.raises(SaoError, match=r"Cannot write .*whole\.txt"):
            files.write_atomic(whole, "after" * 99)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [row["n"] for row in files.resume_rows(rows, 2)] == [0, 1, 2, 3]
    assert whole.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl", "whole.txt"]


SMALL_DISK = """
import subprocess, sys
from pathlib import Path
from sao_lib import files
from sao_lib.errors import SaoError

rows, whole = Path(sys.argv[1], "rows.jsonl"), Path(sys.argv[1], "whole.txt")
files.write_atomic(whole, "before")
try:
    for number in range(1000):
        files.append_rows(rows, [{"n": 2 * number + k, "text": 700 * "x"} for k in (0, 1)])
except SaoError as error:
    print(error)
try:
    files.write_atomic(whole, 99_999 * "x")
except SaoError as error:
    print(error)
subprocess.run(["mount", "-o", "remount,size=256k", sys.argv[1]], check=True)  # the user makes room
kept = files.resume_rows(rows, 2)
print([row["n"] for row in kept] == [*range(len(kept))], 50 < len(kept) < 90, whole.read_text())
print(sorted(path.name for path in Path(sys.argv[1]).iterdir()))
"""


def test_a_disk_of_64_kilobytes_keeps_whole_rows_and_the_old_file(tmp_path: Path) -> None:
    """A file system of the test's own, in a namespace that goes with it; then there is room, and rows go on."""
    own = ["unshare", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*own, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a file system of its own")
    mounted = 'mount -t tmpfs -o size=64k none "$1" && exec "$2" -c "$3" "$1"'
    words = [*own, "sh", "-c", mounted, "sh", str(tmp_path), sys.executable, SMALL_DISK]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    rows, whole, kept, left = done.stdout.splitlines()
    assert re.fullmatch(r"Cannot write .*rows\.jsonl: No space left on device.*", rows)
    assert re.fullmatch(r"Cannot write .*whole\.txt: No space left on device.*", whole)
    assert kept == "True True before"
    assert left == "['rows.jsonl', 'whole.txt']"


def test_a_disk_that_fills_in_a_run_is_said_even_without_room_for_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(graph, "execute", full)
    with pytest.raises(SaoError, match="No space left on device"):
        graph.do_group([tmp_path], None)
    assert "No space left" in (tmp_path / graph.FAILED).read_text()
    monkeypatch.setattr(graph, "write_atomic", lambda *_: files.append_rows(Path("/proc/nothing/x"), []))
    with pytest.raises(SaoError, match="No space left on device"):
        graph.do_group([tmp_path], None)


def test_snakemakes_reason_is_never_empty(tmp_path: Path) -> None:
    assert cluster.call(["sh", "-c", "exit 3"], tmp_path, show=False) == (3, "it gave no reason, exit status 3.")
    noted = "mkdir -p .snakemake/log; echo 'PermissionError: /nope' > .snakemake/log/a.log; exit 1"
    assert cluster.call(["sh", "-c", noted], tmp_path, show=False) == (1, "PermissionError: /nope")
    assert cluster.call(["sh", "-c", "echo why >&2; exit 1"], tmp_path, show=False) == (1, "why")
    beneath = "printf 'Traceback (most recent call last):\\nOSError: 28\\n  from x import *' >&2; "
    beneath += "echo 'Error: No room; kept.' >&2"
    assert cluster.call(["sh", "-c", f"{beneath}; exit 1"], tmp_path, show=False) == (1, "No room; kept.")


def test_without_a_home_there_is_one_under_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "OUTPUTS", tmp_path)
    monkeypatch.setenv("HOME", "/proc/nope")
    assert cluster._environment()["HOME"] == str(tmp_path / ".home")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cluster._environment()["HOME"] == str(tmp_path)


def test_without_git_a_run_ends_as_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert runs.provenance.surroundings()["git_commit"] is None


# make and the shell


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """The Makefile in a folder with a space, and a python that only says what it is given."""
    folder = tmp_path / "My Drivé"
    (folder / "tools").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", folder)
    shutil.copy(ROOT / "tools" / "install.sh", folder / "tools")
    (folder / "params").mkdir()
    shutil.copytree(settings.PARAMS / "profiles", folder / "params" / "profiles")
    (folder / "params" / "profiles" / "mine.yaml").write_text("extends: cpu\n")
    for name in ("requirements.lock", "requirements-gpu.lock", "pyproject.toml", "tools/overrides.txt"):
        (folder / name).touch()
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nfor word in "$@"; do printf "<%s>" "$word"; done\n')
    python.chmod(0o755)
    (folder / ".venv" / ".installed").touch()
    return folder


def make(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "TMPDIR") if key in os.environ}
    return subprocess.run(
        ["make", *words], cwd=folder, env={**kept, **environment}, capture_output=True, text=True, check=False
    )


SHELL = ["$(touch bad)", "$$(touch bad)", "`touch bad`", "x; touch bad", "x & touch bad", "x | touch bad",
         "x > bad", "' ; touch bad ; '", '" ; touch bad ; "', "$HOME", "$(HOME)", "\\", "a\tb", "ü"]  # fmt: skip


@pytest.mark.parametrize("text", SHELL)
def test_what_is_typed_reaches_python_and_neither_make_nor_the_shell(suite: Path, text: str) -> None:
    done = make(suite, "reproduce-smoke", f"SET={text}", f"CLUSTER={text}", f"FRESH={text}")
    assert f"<--changes={text}><--cluster={text}><--fresh={text}><--><smoke>" in done.stdout
    assert f"<--changes={text}>" in make(suite, "plan-smoke", SET=text).stdout
    assert f"<--profile={text}>" in make(suite, "report", f"PROFILE={text}").stdout
    assert f"<--><smoke{text}>" in make(suite, f"plan-smoke{text}").stdout
    assert not list(suite.rglob("bad"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["reproduce-smoke", "PROFILE=cpuu"], "There is no profile 'cpuu' in params/profiles/; there are: cpu"),
        (["reproduce-smoke", "PROFILE="], "There is no profile ''"),
        (["reproduce-smoke", "PROFILE=../profiles/cpu"], "There is no profile '../profiles/cpu'"),
        (["setup", "PROFILE=papper"], "There is no profile 'papper'"),
        (["reproduce-"], "which table or figure?"),
        (["plan"], "which table or figure?"),
        pytest.param(
            ["reproduce-smoke", "PROFILE=paper"],
            "Profile paper needs an NVIDIA GPU and this machine has none",
            marks=pytest.mark.skipif(bool(shutil.which("nvidia-smi")), reason="there is a GPU"),
        ),
    ],
)
def test_make_says_it_before_anything_is_installed(suite: Path, words: list[str], sentence: str) -> None:
    done = make(suite, *words, PYTHON="/bin/false")
    assert done.returncode != 0
    assert done.stderr.startswith(f"Error: {sentence}"), done.stderr
    assert not (suite / ".venv-gpu").exists()


def test_a_profile_that_extends_cpu_shares_its_environment(suite: Path) -> None:
    assert "<--profile=mine>" in make(suite, "reproduce-smoke", "PROFILE=mine").stdout
    assert "tools/install.sh gpu" in make(suite, "-n", "reproduce-smoke", "PROFILE=gpu-small").stdout
