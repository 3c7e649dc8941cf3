"""Training as `train.launch` starts it: here or in a process of its own, in two under ZeRO-3 on CPU (gloo), killed and
resumed.

A random Llama of two layers is trained on random token ids. What must agree, and how closely:
bf16 against bf16 with other kernels or batch shapes to BF16; fp32 to FP32; a resumed training with an uninterrupted
one bit for bit.
"""

import json
import math
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from accelerate import PartialState
from serving import free_port
from tiny_training import a_run, rows, saved
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig

from sao_lib.engines import models
from sao_lib.errors import SaoError
from sao_lib.files import read_rows
from sao_lib.method import callbacks, train, trainer
from sao_lib.method.losses import simpo_reward
from sao_lib.runs import Run
from sao_lib.settings import ROOT, Train

BF16 = 0.02  # of a loss near 3 or of a margin, whose terms are near 100: bf16 keeps 3 digits
FP32 = 1e-4
ZERO3 = {"processes": 2, "deepspeed": "params/deepspeed_zero3.json"}
ZERO3_FP32 = {"processes": 2, "deepspeed": "params/deepspeed_zero3_cpu.json"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("tiny"))


def trained(folder: Path, model: Path, **changes: Any) -> Run:
    run, settings = a_run(folder, model, **changes)
    train.launch(run, settings)
    return run


def losses(run: Run) -> list[float]:
    return [row["loss"] for row in train.curves(run)]


def margins(run: Run) -> list[float]:
    return list(json.loads((run.folder / "held_out.json").read_text()))


def assert_agree(one: Run, other: Run, tolerance: float) -> None:
    """Every logged loss and every held-out margin."""
    assert losses(one) == pytest.approx(losses(other), abs=tolerance)
    assert margins(one) == pytest.approx(margins(other), abs=10 * tolerance)


@pytest.fixture(scope="module")
def alone(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(tmp_path_factory.mktemp("alone"), tiny)


@pytest.fixture(scope="module")
def sharded(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(tmp_path_factory.mktemp("sharded"), tiny, save_steps=2, **ZERO3)


def test_training_learns_and_writes_each_row_once(alone: Run, sharded: Run) -> None:
    for run in (alone, sharded):
        assert sum(losses(run)[:4]) - sum(losses(run)[4:]) > 1, "the second epoch must go better, or nothing is shown"
        assert [row["step"] for row in train.curves(run)] == [*range(1, 9)]
        sampled = read_rows(run.folder / "samples.jsonl")
        assert [(row["step"], row["prompt"]) for row in sampled] == [(0, 0), (0, 1), (8, 0), (8, 1)]
        assert len(margins(run)) == 5


def test_eight_steps_accumulated_are_one_batch_of_eight(alone: Run, tiny: Path, tmp_path: Path) -> None:
    assert_agree(alone, trained(tmp_path, tiny, micro_batch=8), BF16)


def test_two_processes_with_the_papers_zero3_agree_with_one(alone: Run, sharded: Run) -> None:
    assert_agree(alone, sharded, BF16)


def test_in_fp32_two_processes_and_one_and_any_accumulation_agree(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one-process trainings are plain PyTorch in this process, without DeepSpeed."""
    two = trained(tmp_path / "two", tiny, **ZERO3_FP32)
    monkeypatch.setattr(trainer, "_bf16", lambda settings: False)
    for micro in (1, 8):
        one, _ = a_run(tmp_path / str(micro), tiny, micro_batch=micro)
        trainer.main(str(one.folder))
        assert_agree(one, two, FP32)


def test_dpo_starts_at_log_2_under_the_papers_zero3(tiny: Path, tmp_path: Path) -> None:
    """Policy and reference are the same model then; transformers would round the reference to bf16 on the way."""
    assert losses(trained(tmp_path, tiny, loss="dpo", **ZERO3))[0] == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize("which", ["alone", "sharded"])
def test_the_saved_model_gives_the_trained_probabilities(which: str, request: pytest.FixtureRequest) -> None:
    """ZeRO-3 computes in bf16 weights, one process in fp32 weights under autocast: reloaded, both must be met."""
    run: Run = request.getfixturevalue(which)
    model = AutoModelForCausalLM.from_pretrained(run.folder / "model")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    if which == "sharded":
        model = model.to(torch.bfloat16)
    found = []
    for row in rows(5, 1):
        rewards = []
        for side in ("chosen_ids", "rejected_ids"):
            ids = torch.tensor([row["prompt_ids"] + row[side]])
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=which == "alone"):
                logp = model(ids).logits[0, :-1].float().log_softmax(-1)
            taken = logp.gather(1, ids[0, 1:, None])[len(row["prompt_ids"]) - 1 :, 0]
            rewards.append(simpo_reward(taken.sum(), torch.tensor(len(taken)), 10.0))
        found.append((rewards[0] - rewards[1]).item())
    assert found == pytest.approx(margins(run), abs=BF16)


def written(run: Run) -> dict[str, bytes]:
    """All that a later stage or a reader takes from a training."""
    names = ["metrics.jsonl", "samples.jsonl", "held_out.json", "attention.json"]
    paths = [*(run.folder / name for name in names), *(run.folder / "model").iterdir()]
    return {path.name: path.read_bytes() for path in paths}


on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="not tested: with CUDA every training has its process")


@on_cpu
def test_training_here_writes_to_the_byte_what_a_launched_one_does(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First and second in this process; what the model answers untrained is asked of it once."""
    asked: list[int] = []
    answers = callbacks.Samples.answers
    monkeypatch.setattr(callbacks.Samples, "answers", lambda self: asked.append(1) or answers(self))
    monkeypatch.setattr(callbacks, "UNTRAINED", {})
    changes: dict[str, Any] = {"lora_rank": 4, "warmup": 0.1}
    launched, settings = a_run(tmp_path / "launched", tiny, **changes)
    assert train.train_launched(launched, settings) == 0
    torch.manual_seed(5)
    here = trained(tmp_path / "here", tiny, **changes)
    trained(tmp_path / "other", tiny, loss="orpo", beta=0.1, micro_batch=2)
    again = trained(tmp_path / "again", tiny, **changes)
    assert written(here) == written(launched)
    assert written(again) == written(launched)
    assert len(asked) == 1 + 3  # untrained, and after each training


@on_cpu
def test_the_seed_decides_the_adapters(tiny: Path, tmp_path: Path) -> None:
    """One step of all pairs: their order decides nothing, and adapters that add nothing yet leave the loss alone."""
    first = []
    for seed in (1, 2):
        run, settings = a_run(tmp_path / str(seed), tiny, pairs=8, epochs=1, lora_rank=4)
        run.params["seed"] = seed
        train.launch(run, settings)
        first += train.curves(run)
    assert first[0]["loss"] == pytest.approx(first[1]["loss"], abs=FP32)
    assert first[0]["grad_norm"] != pytest.approx(first[1]["grad_norm"], rel=0.01)


@on_cpu
@pytest.mark.parametrize(
    ("error", "seen", "said"),
    [
        (ValueError("no margin"), SaoError, r"stopped \(1\): ValueError: no margin The whole log is in .*trainer.log"),
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
    ],
)
def test_a_training_that_stops_here_says_why_and_leaves_nothing_behind(
    error: BaseException, seen: type[BaseException], said: str,
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def stop(*args: Any) -> None:
        raise error

    monkeypatch.setattr(trainer, "held_out_margins", stop)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")  # another library's
    environment = dict(os.environ)
    with pytest.raises(seen, match=said):
        trained(tmp_path, tiny)
    assert dict(os.environ) == environment
    assert not PartialState._shared_state
    assert capfd.readouterr() == ("", "")
    assert "attention: sdpa" in (tmp_path / "trainer.log").read_text()


def kill_after(run: Run, settings: Train, sign: Path) -> None:
    """Start the training and kill -9 all its processes when `sign` exists."""
    failed: list[BaseException] = []

    def start() -> None:
        try:
            train.launch(run, settings)
        except SaoError as error:
            failed.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    while thread.is_alive() and not sign.exists():
        time.sleep(0.01)
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # one that has ended meanwhile
            if str(run.folder) in " ".join(process.cmdline()):
                process.kill()
    thread.join()
    assert failed, "the training ended before it could be killed"


def test_killed_training_resumes_to_the_same_result(sharded: Run, tiny: Path, tmp_path: Path) -> None:
    run, settings = a_run(tmp_path, tiny, save_steps=2, **ZERO3)
    kill_after(run, settings, run.folder / "checkpoints" / "checkpoint-2" / "trainer_state.json")
    assert not (run.folder / "held_out.json").exists()
    assert len(train.curves(run)) < 8
    train.launch(run, settings)
    assert losses(run) == losses(sharded)
    assert margins(run) == margins(sharded)
    assert (run.folder / "samples.jsonl").read_bytes() == (sharded.folder / "samples.jsonl").read_bytes()


def test_checkpoints_go_when_the_model_is_whole_and_nothing_is_trained_twice(
    sharded: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (sharded.folder / "model" / "model.safetensors").is_file()
    assert not (sharded.folder / "checkpoints").exists()
    monkeypatch.setattr(train, "train_launched", lambda *_: pytest.fail("trained again"))
    before = losses(sharded)
    (sharded.folder / "checkpoints").mkdir()  # killed before the last of them was gone
    train.launch(sharded, Train.model_validate(sharded.params["train"]))
    assert losses(sharded) == before
    assert not (sharded.folder / "checkpoints").exists()


# A weight whose gradient is large in the first of sixteen micro-batches and small in the others.
ACCUMULATED = """
import json, os, sys, torch
os.environ.update(DS_ACCELERATOR="cpu", RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1",
                  MASTER_PORT=sys.argv[2])
import deepspeed
from deepspeed.utils import safe_get_full_grad
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
config = {**json.load(open(sys.argv[1])), "bf16": {"enabled": True}, "gradient_accumulation_steps": 16,
          "gradient_clipping": 0, "train_micro_batch_size_per_gpu": 1, "train_batch_size": 16,
          "zero_allow_untested_optimizer": True}
model = torch.nn.Linear(1, 1, bias=False)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=True)
for number in range(16):
    x = torch.tensor([[256.0 if number == 0 else 0.5]], dtype=torch.bfloat16)
    engine.backward(engine(x).sum())
    if number == 15:
        print("sum", 16 * safe_get_full_grad(next(iter(model.parameters()))).item())
    engine.step()
"""


def test_sixteen_micro_batches_add_up_under_the_papers_deepspeed_file(tmp_path: Path) -> None:
    """256 + 15 x 0.5: in bf16 256 + 0.5 is 256, and all but the first would be lost."""
    (tmp_path / "accumulated.py").write_text(ACCUMULATED)
    words = [sys.executable, "accumulated.py", str(ROOT / "params/deepspeed_zero3.json"), str(free_port())]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        words, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    said = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("sum ")]
    assert said, done.stderr[-1000:]
    assert float(said[0]) == pytest.approx(263.5, abs=0.6)


def test_half_a_checkpoint_is_passed_over(tmp_path: Path) -> None:
    for step, state, ranks in ((2, "{}", 2), (4, "{}", 1), (6, '{"global_', 2), (8, None, 2)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for rank in range(ranks):
            (folder / f"rng_state_{rank}.pth").touch()
        if state:
            (folder / "trainer_state.json").write_text(state)
    assert trainer.newest_checkpoint(tmp_path, 2) == str(tmp_path / "checkpoint-2")
    assert trainer.newest_checkpoint(tmp_path / "none", 2) is None


@pytest.mark.parametrize(
    ("softcap", "asked", "flash", "used", "because"),
    [
        (None, "sdpa", False, "sdpa", None),
        (None, "eager", False, "eager", None),
        (None, "flash_attention_2", True, "flash_attention_2", None),
        (None, "flash_attention_2", False, "sdpa", "not installed"),
        (50.0, "sdpa", True, "eager", "soft-cap"),
        (50.0, "flash_attention_2", False, "eager", "not installed; SDPA would drop the soft-cap"),
        (50.0, "flash_attention_2", True, "flash_attention_2", None),
    ],
)
def test_attention(
    softcap: float | None, asked: str, flash: bool, used: str, because: str | None,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: flash)
    config = Gemma2Config(attn_logit_softcapping=softcap) if softcap else LlamaConfig()
    config.save_pretrained(tmp_path)
    found, reason = models.attention_for(tmp_path, asked)
    assert (found, reason is None) == (used, because is None)
    assert because is None or because in str(reason)


def test_attention_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(SaoError, match="it must be flash_attention_2, sdpa or eager"):
        models.attention_for(tmp_path, "flash")


def test_why_training_failed_is_said() -> None:
    log = """Traceback (most recent call last):
[rank1]: ValueError: micro-batch
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
  error_file: <N/A>
============"""
    assert train.why_stopped(log) == "[rank1]: ValueError: micro-batch"
    assert train.why_stopped("Killed\n") == "Killed"
    assert train.why_stopped("") == "no output"
