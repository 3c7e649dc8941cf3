"""The real local engines: vLLM against transformers on the same requests."""

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from weakref import WeakSet

import own_process
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from rehearsal import families
from sao_lib import engines
from sao_lib.engines import TOO_LONG, Conversation, Engine, give_back, open_engine, was_asked
from sao_lib.engines.hf_engine import SeededSampler
from sao_lib.engines.models import resolve
from sao_lib.engines.replicas import Replicas, devices_of_copies
from sao_lib.engines.vllm_engine import _but_for_weights, options_of
from sao_lib.errors import SaoError
from sao_lib.launch.keeper import kept
from sao_lib.method import judge
from sao_lib.settings import ROOT, Judge
from sao_lib.settings import Engine as Settings

SMOL = "embedded/smollm2-135m-instruct"
VLLM = Settings(kind="vllm", dtype="float32", max_model_len=512, max_num_seqs=8, kv_cache_tokens=8192)
TRANSFORMERS = Settings(kind="transformers", dtype="float32", max_model_len=512)
TEXTS = ["Why is the sky blue?", "Name three fruits.", "Write a short note to a neighbour about a parcel."]
REQUESTS = [Conversation(({"role": "user", "content": text},)) for text in TEXTS]


@pytest.mark.parametrize(
    ("name", "template"), [(SMOL, None), ("embedded/gemma-3-270m", "params/templates/plain.jinja"), ("gemma2", None)]
)
def test_vllm_and_transformers_agree(name: str, template: str | None, tmp_path: Path) -> None:
    """Same request, same ids, same greedy text and log-probabilities; Gemma-2's are capped in two places."""
    found = []
    if name in families.FAMILIES:
        name = str(families.make(name, tmp_path / "model"))
    for settings in (VLLM, TRANSFORMERS):
        engine = open_engine(name, settings, tmp_path / "log", template)
        texts = engine.generate(REQUESTS, 12, 0.0, [0] * 3)
        odds = engine.label_logprobs(REQUESTS, (" A", " B"))
        logps = engine.completion_logprobs(REQUESTS, ["Because light scatters."] * 3)
        found.append(([t.text for t in texts], [t.tokens_in for t in texts], odds, logps))
        engine.close()
    assert found[0][:2] == found[1][:2]
    for one, two in zip(found[0][2] + found[0][3], found[1][2] + found[1][3], strict=True):
        assert one == pytest.approx(two, abs=2e-3)


def test_seeds_make_a_request_repeatable_and_switching_models_keeps_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = logging.StreamHandler()
    monkeypatch.setattr(handler, "close", lambda: pytest.fail("vLLM closed another library's log handler"))
    engine = open_engine(SMOL, VLLM, tmp_path / "log")
    once = [c.text for c in engine.generate(REQUESTS, 16, 0.6, [1, 2, 3])]
    again = [c.text for c in engine.generate(REQUESTS, 16, 0.6, [1, 2, 3])]
    other = [c.text for c in engine.generate(REQUESTS, 16, 0.6, [4, 5, 6])]
    assert once == again != other
    give_back(engine)
    same = open_engine(SMOL, VLLM, tmp_path / "log")
    assert same is engine
    assert [c.text for c in same.generate(REQUESTS, 16, 0.6, [1, 2, 3])] == once
    give_back(same)
    # Weights of another training, read into the same engine, are what transformers reads of them.
    other_weights = moved_weights(resolve(SMOL), tmp_path / "trained")
    before = same.completion_logprobs(REQUESTS, ["Because light scatters."] * 3)
    trained = open_engine(str(other_weights), VLLM, tmp_path / "log")
    assert trained is engine
    reloaded = trained.completion_logprobs(REQUESTS, ["Because light scatters."] * 3)
    engine.close()
    alone = open_engine(str(other_weights), TRANSFORMERS, tmp_path / "log")
    for one, two, old in zip(reloaded, alone.completion_logprobs(REQUESTS, ["Because light scatters."] * 3), before,
                             strict=True):  # fmt: skip
        assert one == pytest.approx(two, abs=2e-3)
        assert one != pytest.approx(old, abs=2e-2)
    alone.close()


def moved_weights(folder: Path, to: Path, **config: Any) -> Path:
    """A copy of a model whose weights are another training's, and whose configuration differs in `config`."""
    shutil.copytree(folder, to)
    weights = load_file(to / "model.safetensors")
    save_file({name: w * 1.05 if "q_proj" in name else w for name, w in weights.items()}, to / "model.safetensors",
              {"format": "pt"})  # fmt: skip
    said = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**said, **config}))
    return to


def test_an_engine_takes_only_weights_of_a_model_that_is_otherwise_the_same(tmp_path: Path) -> None:
    smol = resolve(SMOL)
    assert _but_for_weights(smol) == _but_for_weights(moved_weights(smol, tmp_path / "same", use_cache=False))
    for n, other in enumerate(
        (
            {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}},
            {"eos_token_id": 0},
            {"rms_norm_eps": 0.1},
        )
    ):
        assert _but_for_weights(smol) != _but_for_weights(moved_weights(smol, tmp_path / str(n), **other)), other


class FakeEngine:
    """Fake engine that may be kept; with `broken` it cannot read other weights."""

    def __init__(self, broken: bool = False) -> None:
        self.broken, self.closed = broken, 0

    def reload(self, *_: Any) -> bool:
        if self.broken:
            raise RuntimeError("half of the weights")
        return True

    def close(self) -> None:
        self.closed += 1


def test_an_engine_that_failed_or_was_left_is_closed_and_not_taken_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[FakeEngine] = []
    monkeypatch.setattr(engines, "_kept", None)
    monkeypatch.setattr(
        engines, "_opened", WeakSet()
    )  # other tests' engines, which they closed themselves, are not here
    monkeypatch.setattr(engines, "_start", lambda *_: started.append(FakeEngine()) or started[-1])
    broken: Any = FakeEngine(broken=True)
    give_back(broken)
    with pytest.raises(RuntimeError, match="half of the weights"):
        open_engine(SMOL, VLLM, tmp_path / "log")
    assert broken.closed == 1
    kept, left = open_engine(SMOL, VLLM, tmp_path / "log"), open_engine(SMOL, VLLM, tmp_path / "log")
    assert started == [kept, left]
    give_back(kept)
    engines.close_left()  # what a notebook that failed never gave back
    assert [e.closed for e in started] == [0, 1]
    assert open_engine(SMOL, VLLM, tmp_path / "log") is kept
    engines.close_left()
    assert [e.closed for e in started] == [1, 1]


LONG = Conversation(({"role": "user", "content": "word " * 900},))


def check_too_long(engine: Engine, log: Path) -> None:
    """A request that does not fit is not asked, and the others are as without it."""
    mixed, seeds = [REQUESTS[0], LONG, REQUESTS[1]], [1, 0, 2]
    found = engine.generate(mixed, 12, 0.6, seeds)
    assert [c.reason for c in found] == [None, TOO_LONG, None]
    assert found[1].tokens_in > 900
    assert [found[0].text, found[2].text] == [c.text for c in engine.generate(REQUESTS[:2], 12, 0.6, [1, 2])]
    odds = engine.label_logprobs(mixed, (" A", " B"))
    assert [was_asked(row[0]) for row in odds] == [True, False, True]
    logps = engine.completion_logprobs(mixed, ["Because light scatters."] * 3)
    assert [[was_asked(p) for p in row] for row in logps] == [[True] * len(logps[0]), [False], [True] * len(logps[2])]
    assert engine.generate([LONG], 12, 0.0, [0])[0].reason == TOO_LONG


@pytest.mark.parametrize("settings", [VLLM, Settings(kind="transformers", dtype="float32", max_model_len=512)])
def test_a_request_that_does_not_fit_ends_no_run(settings: Settings, tmp_path: Path) -> None:
    engine = open_engine(SMOL, settings, tmp_path / "log")
    check_too_long(engine, tmp_path / "log")
    engine.close()
    if settings is VLLM:
        assert "1 of 3 requests are too long, up to 9" in (tmp_path / "log").read_text()


def test_transformers_samples_each_request_by_its_own_seed(tmp_path: Path) -> None:
    """Whatever the batch: a request's text depends on its seed, and draws follow softmax(logits / temperature)."""
    settings = Settings(kind="transformers", dtype="float32", max_model_len=512, max_num_seqs=2)
    engine = open_engine(SMOL, settings, tmp_path / "log")
    one = [c.text for c in engine.generate(REQUESTS, 12, 0.6, [1, 2, 3])]
    turned = [c.text for c in engine.generate(REQUESTS[::-1], 12, 0.6, [3, 2, 1])]
    other = [c.text for c in engine.generate(REQUESTS, 12, 0.6, [4, 5, 6])]
    assert one == turned[::-1] != other
    engine.close()
    logits, draws = torch.tensor([0.0, 1.0, 2.0, -1.0]), 4000
    drawn = SeededSampler(range(draws), 0.7, "cpu")(None, logits.repeat(draws, 1)).argmax(1)
    wanted = (logits / 0.7).softmax(0)
    spread = 4 * (wanted * (1 - wanted) / draws).sqrt()
    assert ((torch.bincount(drawn, minlength=4) / draws - wanted).abs() < spread).all()


def test_requests_that_begin_alike_compute_their_beginning_once(tmp_path: Path) -> None:
    """A judge asked about two pairs in both orders: the ranking prompt's own words are read once, not four times."""
    judge_settings = Judge(source="llm", template="params/templates/ranking.yaml", reading="logprob", orders="both")
    pairs = [(TEXTS[0], "It scatters light.", "No idea."), (TEXTS[1], "Apple, pear, plum.", "Three.")]
    found = {}
    for caching in (True, False):
        engine: Any = open_engine(SMOL, VLLM.model_copy(update={"prefix_caching": caching}), tmp_path / "log")
        outputs, plain = [], engine.llm.generate
        engine.llm.generate = lambda *args, **kwargs: outputs.extend(plain(*args, **kwargs)) or outputs  # noqa: B023
        margins = [v["margin"] for v in judge.llm_verdicts(engine, pairs, judge_settings, True, 0)]
        found[caching] = ([o.num_cached_tokens or 0 for o in outputs], margins)
        engine.close()
    cached, uncached = found[True][0], found[False][0]
    assert uncached == [0] * 4
    assert cached[0] == 0
    assert min(cached[1:]) >= 64
    assert found[True][1] == pytest.approx(found[False][1], abs=2e-3)


def test_copies_of_an_engine_share_out_the_requests_and_agree_with_one(tmp_path: Path) -> None:
    one, two = (
        open_engine(SMOL, VLLM.model_copy(update={"data_parallel": n}), tmp_path / "log") for n in (1, 2)
    )  # two processes, each with a real engine
    assert [c.text for c in one.generate(REQUESTS, 12, 0.6, [1, 2, 3])] == [
        c.text for c in two.generate(REQUESTS, 12, 0.6, [1, 2, 3])
    ]
    for odds, other in zip(
        one.label_logprobs(REQUESTS, (" A", " B")), two.label_logprobs(REQUESTS, (" A", " B")), strict=True
    ):
        assert odds == pytest.approx(other, abs=2e-3)
    check_too_long(two, tmp_path / "log")
    living = [p for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE]  # of an earlier test
    copies = [p for p in living if "spawn_main" in " ".join(p.cmdline())]
    assert len(copies) == 2
    copies[0].kill()
    with pytest.raises(SaoError, match="ended from outside"):
        two.generate(REQUESTS, 12, 0.0, [0] * 3)
    one.close()
    two.close()


# As on GPUs: vLLM's engine in a process of its own, which a notebook's process must not wait for, nor leave behind.
@pytest.mark.parametrize("killed", [False, True])
def test_vllms_own_processes_give_what_transformers_gives_and_end_with_what_opened_them(
    killed: bool, tmp_path: Path
) -> None:
    words = [sys.executable, own_process.__file__, SMOL, str(tmp_path), "wait" if killed else "close"]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "PYTHONPATH": str(ROOT)}
    with kept(words, cwd=ROOT, env=environment) as process:
        while killed and not (tmp_path / "pids").exists() and process.poll() is None:
            time.sleep(0.2)
        if killed:
            command = next(p for p in psutil.Process(process.pid).children() if "own_process" in " ".join(p.cmdline()))
            command.kill()
        assert process.wait(300) == (137 if killed else 0)
    below = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(below) >= 2
    assert not any(psutil.pid_exists(pid) for pid in below)
    found = json.loads((tmp_path / "values.json").read_text())
    assert found["again"] == {key: found[key] for key in found["again"]}, "the same after its weights were read anew"
    assert found["drawn"][0] == found["drawn"][1] != found["drawn"][2]
    engine = open_engine(SMOL, own_process.SETTINGS.model_copy(update={"kind": "transformers"}), tmp_path / "log")
    expected = own_process.values(engine)
    engine.close()
    assert found["texts"] == expected["texts"]
    assert found["texts"][1][2] == TOO_LONG
    for key in ("labels", "logps"):
        assert found[key][0] == pytest.approx(expected[key][0], abs=2e-3)


def test_copies_that_started_are_closed_where_another_does_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    closed = []

    def fail(*_: object) -> None:
        raise RuntimeError("Engine core initialization failed")

    monkeypatch.setattr(Replicas, "_each", fail)
    monkeypatch.setattr(Replicas, "close", lambda self: closed.append(len(self.pools)))
    with pytest.raises(RuntimeError, match="initialization failed"):
        Replicas(resolve(SMOL), VLLM.model_copy(update={"data_parallel": 2}), tmp_path / "log", None)
    assert closed == [2]


def test_copies_have_cards_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5,7")
    settings = Settings(kind="vllm", data_parallel=2, tensor_parallel=2)
    assert devices_of_copies(settings) == ["2,3", "5,7"]
    with pytest.raises(SaoError, match="needs 8 GPUs, here are 4"):
        devices_of_copies(settings.model_copy(update={"data_parallel": 4}))


def test_a_process_is_set_up_for_gpus_before_torch_is_asked_for_them() -> None:
    """Asking whether there are any must not initialise CUDA, which a forked process could then not use."""
    said = "e['PYTORCH_NVML_BASED_CUDA_CHECK'], e['VLLM_WORKER_MULTIPROC_METHOD'], 'torch' in sys.modules"
    code = f"import os, sys, sao_lib; e = os.environ; print({said})"
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTORCH", "VLLM"))}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=clean, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "spawn", "False"]
    asking = [p for p in (ROOT / "sao_lib").rglob("*.py") if "cuda.is_available" in p.read_text()]
    assert {p.name for p in asking} == {"machine.py", "cards.py"}  # the latter in a process of its own


def test_options_reach_vllm_over_ours() -> None:
    given = {"gpu_memory_utilization": 0.8, "max_num_seqs": 3, "hf_overrides": {"rope_theta": 1.0}}
    found = options_of(VLLM.model_copy(update={"options": given}), cuda=True)
    assert (found["gpu_memory_utilization"], found["max_num_seqs"], found["dtype"]) == (0.8, 3, "float32")
    assert found["hf_overrides"] == {"head_dtype": "float32", "rope_theta": 1.0}
    assert "gpu_memory_utilization" not in options_of(VLLM, cuda=True)
