"""What reaches the trainer: token ids as sampled, nothing cut, every dropped pair counted. What it prints: nothing."""

import logging
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sao_lib.engines.chat import Chat
from sao_lib.engines.models import resolve
from sao_lib.errors import SaoError
from sao_lib.method import callbacks, train
from sao_lib.progress import LOG, quiet
from sao_lib.runs import Run
from sao_lib.settings import Policy, Settings, Train

SMOL = "embedded/smollm2-135m-instruct"
POLICY = Policy(model=SMOL)


def pair(number: int, chosen: str, rejected: str, finished: bool = True) -> dict[str, Any]:
    return {
        "id": str(number),
        "prompt": [{"role": "user", "content": f"Question {number}?"}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "chosen_finished": finished,
        "rejected_finished": True,
    }


@pytest.fixture
def settings(cpu: Settings) -> Train:
    changes = {"max_length": 96, "min_completion": 3, "held_out": 1, "global_batch": 2, "micro_batch": 1}
    return cpu.train.model_copy(update=changes)


def test_pairs_that_do_not_fit_are_dropped_and_counted_never_cut(
    make_run: Callable[..., Run], settings: Train, tmp_path: Path
) -> None:
    good = [pair(n, "A fine answer of some words.", "Another answer, less fine.") for n in range(4)]
    long = [pair(10, "word " * 200, "Short enough."), pair(11, "Short enough.", "word " * 200)]
    short = [pair(20, "A fine answer.", "")]
    run = make_run()
    assert train.prepare(run, [*long, *good, *short], settings, POLICY) == {
        "train": 3,
        "held_out": 1,
        "dropped": {"too long": 2, "too short": 1},
    }
    chat = Chat(resolve(SMOL))
    kept = run.rows("train.jsonl") + run.rows("held_out.jsonl")
    assert [row["id"] for row in kept] == ["0", "1", "2", "3"]
    for row in kept:
        assert chat.tokenizer.decode(row["chosen_ids"]) == "A fine answer of some words.<|im_end|>"
        assert row["prompt_ids"] == chat.ids(({"role": "user", "content": f"Question {row['id']}?"},))


def test_a_response_that_was_not_ended_gets_no_end(make_run: Callable[..., Run], settings: Train) -> None:
    rows = [pair(n, "It goes on and on", "It ends here.", finished=False) for n in range(3)]
    run = make_run()
    train.prepare(run, rows, settings, POLICY)
    end = Chat(resolve(SMOL)).tokenizer.eos_token_id
    for row in run.rows("train.jsonl"):
        assert end not in row["chosen_ids"]
        assert row["rejected_ids"][-1] == end


def test_a_longest_pair_just_fits(make_run: Callable[..., Run], settings: Train) -> None:
    rows = [pair(n, "one two three four five", "six seven eight") for n in range(3)]
    run = make_run()
    train.prepare(run, rows, settings, POLICY)
    row = run.rows("train.jsonl")[0]
    exact = len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
    fits, not_quite = (settings.model_copy(update={"max_length": limit}) for limit in (exact, exact - 1))
    assert train.prepare(run, rows, fits, POLICY)["dropped"]["too long"] == 0
    with pytest.raises(SaoError, match="0 usable pairs are too few"):
        train.prepare(run, rows, not_quite, POLICY)


def test_a_training_set_smaller_than_asked_for_is_refused(make_run: Callable[..., Run], settings: Train) -> None:
    rows = [pair(n, "A fine answer of some words.", "Another answer, less fine.") for n in range(5)]
    run = make_run()
    assert train.prepare(run, rows, settings.model_copy(update={"pairs": 4}), POLICY)["train"] == 4
    with pytest.raises(SaoError, match="4 pairs are left to train on beside 1 held out, fewer than train.pairs = 5"):
        train.prepare(run, rows, settings.model_copy(update={"pairs": 5}), POLICY)


def test_what_libraries_say_meanwhile_goes_to_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    library = logging.getLogger("some library")
    library.addHandler(logging.StreamHandler())  # keeps the stream that it finds now
    with quiet(tmp_path / "log"):
        print("by Python")
        os.write(2, b"by compiled code\n")
        library.warning("by a logger")
    library.warning("afterwards")
    assert capfd.readouterr() == ("", "afterwards\n")
    assert sorted((tmp_path / "log").read_text().splitlines()) == ["by Python", "by a logger", "by compiled code"]


@pytest.mark.parametrize(
    ("installed", "project", "wanted"),
    [((), "", []), (("tensorboard",), "", ["tensorboard"]), (("tensorboard", "wandb"), "", ["tensorboard"]),
     (("wandb",), "mine", ["wandb"])],
)  # fmt: skip
def test_curves_go_to_tensorboard_where_it_is_and_to_wandb_only_when_asked(
    installed: tuple[str, ...], project: str, wanted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "find_spec", lambda name: name in installed)
    monkeypatch.setenv("WANDB_PROJECT", project)
    monkeypatch.setenv("WANDB_DIR", "")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    assert callbacks.dashboards(tmp_path) == wanted
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == (str(tmp_path / "tensorboard") if "tensorboard" in wanted else "")


def test_wandb_that_is_asked_for_and_missing_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "find_spec", lambda name: None)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    with pytest.raises(SaoError, match="wandb is not installed"):
        callbacks.dashboards(tmp_path)


def test_many_pairs_are_tokenised_by_several_processes_to_the_same_and_say_how_far_they_are(
    make_run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [pair(n, f"Answer {n} of some words.", "Another.", finished=n % 2 == 0) for n in range(7)]
    run = make_run()
    alone = train.tokenised(rows, POLICY, run)
    assert not (tmp_path / LOG).exists()
    monkeypatch.setattr(train, "PART", 3)
    assert train.tokenised(rows, POLICY, run, 2) == alone == train.tokenised(rows, POLICY, run, 1)
    assert "pairs tokenised 7/7" in (tmp_path / LOG).read_text()


def test_the_launcher_does_not_read_the_users_own_configuration(
    make_run: Callable[..., Run], settings: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.commands import launch

    started: list[list[str]] = []
    done = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(train.subprocess, "run", lambda command, **how: started.append(command) or done)
    run = make_run()
    for processes, deepspeed in ((1, None), (2, None), (4, "params/deepspeed_zero3.json")):
        train.train_launched(run, settings.model_copy(update={"processes": processes, "deepspeed": deepspeed}))
    monkeypatch.setattr(launch, "default_config_file", "a user's")
    for command in started:
        given = launch.launch_command_parser().parse_args(command[3:])
        read, defaults, _ = launch._validate_launch_command(given)
        assert defaults is not None
        assert (read.use_fsdp, read.mixed_precision, read.gpu_ids) == (False, "no", "all")
        assert read.use_deepspeed == (read.num_processes == 4)
