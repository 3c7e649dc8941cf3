"""The real engines: vLLM against transformers on the same requests, and a real OpenAI-compatible server."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from sao_lib import judge
from sao_lib.engines import Conversation, open_engine, switch_engine
from sao_lib.engines.openai_api import OpenAIEngine, most_usd
from sao_lib.errors import SaoError
from sao_lib.models import resolve
from sao_lib.settings import PARAMS, Engine, Judge

SMOL = "embedded/smollm2-135m-instruct"
KEY = "only-for-this-test"
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


def test_seeds_make_a_request_repeatable_and_switching_models_keeps_the_engine(tmp_path: Path) -> None:
    engine = open_engine(SMOL, VLLM, tmp_path / "log")
    once = [c.text for c in engine.generate(REQUESTS, 16, 0.6, [1, 2, 3])]
    again = [c.text for c in engine.generate(REQUESTS, 16, 0.6, [1, 2, 3])]
    other = [c.text for c in engine.generate(REQUESTS, 16, 0.6, [4, 5, 6])]
    assert once == again != other
    same = switch_engine(engine, SMOL, VLLM, tmp_path / "log")
    assert same is engine
    assert [c.text for c in same.generate(REQUESTS, 16, 0.6, [1, 2, 3])] == once
    with pytest.raises(SaoError, match="does not fit max_model_len 512"):
        engine.generate([Conversation(({"role": "user", "content": "word " * 900},))], 16, 0.0, [0])
    engine.close()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """vLLM's own OpenAI-compatible server with the embedded model, on loopback."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(resolve(SMOL)),
        "--enforce-eager",
    ]
    command += ["--served-model-name", "gpt-4o-mini", "unlisted", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--max-model-len", "1024", "--api-key", KEY, "--max-logprobs", "20", "--dtype", "float32"]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                assert process.poll() is None, "the server ended before it was ready"
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture
def api(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> OpenAIEngine:
    monkeypatch.setenv("OPENAI_BASE_URL", server)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return OpenAIEngine("gpt-4o-mini", Engine(kind="openai", max_usd=1), tmp_path / "log")


def test_openai_generates_and_gives_label_logprobs(api: OpenAIEngine) -> None:
    out = api.generate(REQUESTS, 12, 0.0, [1, 2, 3])
    assert all(c.text and c.tokens_in > 0 and c.tokens_out > 0 for c in out)
    odds = api.label_logprobs(REQUESTS, ("The", "I"))
    assert all(a <= 0 and b <= 0 for a, b in odds)


def test_the_papers_text_verdict_through_the_api(api: OpenAIEngine) -> None:
    """The GPT-4o rows' own path; this small model gives no verdict, and no verdict is what is recorded."""
    settings = Judge(source="llm", model="openai/gpt-4o-mini", reading="text", orders="one")
    pair = (TEXTS[0], "Because of scattering. ranking: 2 > 1", "No idea.")
    verdict = judge.llm_verdicts(api, [pair], settings, False, 0)[0]
    template = judge.read_yaml(PARAMS / "templates" / "ranking.yaml")
    said = api.generate([judge.ranking_request(template, pair, None, False)], 512, 0.0, [0])[0].text
    assert verdict["verdict"] == judge.parse_verdict(said)


def test_the_cap_is_checked_before_the_first_call(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")  # nobody there: a call would fail otherwise
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    engine = OpenAIEngine("gpt-4o-mini", Engine(kind="openai", max_usd=0.00001), tmp_path / "log")
    with pytest.raises(SaoError, match=r"may cost \$.*cap engine.max_usd"):
        engine.generate(REQUESTS, 512, 0.0, [0] * 3)


def test_a_model_without_a_listed_price_is_refused(api: OpenAIEngine) -> None:
    with pytest.raises(SaoError, match="lists no price for 'unlisted'"):
        most_usd("unlisted", REQUESTS, 10)


def test_a_wrong_key_a_dead_server_and_no_key(
    api: OpenAIEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = Engine(kind="openai", max_usd=1)
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    with pytest.raises(SaoError, match="refused OPENAI_API_KEY"):
        OpenAIEngine("gpt-4o-mini", settings, tmp_path / "log").generate(REQUESTS, 4, 0.0, [0] * 3)
    monkeypatch.setattr("sao_lib.engines.openai_api.RETRIES", 0)
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{free_port()}/v1")
    with pytest.raises(SaoError, match="cannot be reached"):
        OpenAIEngine("gpt-4o-mini", settings, tmp_path / "log").generate(REQUESTS, 4, 0.0, [0] * 3)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(SaoError, match="needs OPENAI_API_KEY"):
        OpenAIEngine("gpt-4o-mini", settings, tmp_path / "log")
