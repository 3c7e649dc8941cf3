"""The real local engines: vLLM against transformers on the same requests."""

import logging
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from sao_lib.engines import Conversation, give_back, open_engine
from sao_lib.engines.hf_engine import SeededSampler
from sao_lib.engines.replicas import devices_of_copies
from sao_lib.errors import SaoError
from sao_lib.method import judge
from sao_lib.settings import Engine, Judge

SMOL = "embedded/smollm2-135m-instruct"
VLLM = Engine(kind="vllm", dtype="float32", max_model_len=512, max_num_seqs=8, kv_cache_tokens=8192)
TEXTS = ["Why is the sky blue?", "Name three fruits.", "Write a short note to a neighbour about a parcel."]
REQUESTS = [Conversation(({"role": "user", "content": text},)) for text in TEXTS]


@pytest.mark.parametrize(
    ("name", "template"), [(SMOL, None), ("embedded/gemma-3-270m", "params/templates/plain.jinja")]
)
def test_vllm_and_transformers_agree(name: str, template: str | None, tmp_path: Path) -> None:
    """Same request, same ids, same greedy text and log-probabilities."""
    found = []
    for settings in (VLLM, Engine(kind="transformers", dtype="float32", max_model_len=512)):
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
    with pytest.raises(SaoError, match="does not fit max_model_len 512"):
        engine.generate([Conversation(({"role": "user", "content": "word " * 900},))], 16, 0.0, [0])
    engine.close()


def test_transformers_samples_each_request_by_its_own_seed(tmp_path: Path) -> None:
    """Whatever the batch: a request's text depends on its seed, and draws follow softmax(logits / temperature)."""
    settings = Engine(kind="transformers", dtype="float32", max_model_len=512, max_num_seqs=2)
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
    with pytest.raises(SaoError, match="does not fit max_model_len 512"):
        two.generate([Conversation(({"role": "user", "content": "word " * 900},))], 16, 0.0, [0])
    copies = [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]
    assert len(copies) == 2
    copies[0].kill()
    with pytest.raises(SaoError, match="ended from outside"):
        two.generate(REQUESTS, 12, 0.0, [0] * 3)
    one.close()
    two.close()


def test_copies_have_cards_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5,7")
    settings = Engine(kind="vllm", data_parallel=2, tensor_parallel=2)
    assert devices_of_copies(settings) == ["2,3", "5,7"]
    with pytest.raises(SaoError, match="needs 8 GPUs, here are 4"):
        devices_of_copies(settings.model_copy(update={"data_parallel": 4}))
