"""The OpenAI-compatible engine against vLLM's real server, also behind a proxy that refuses, breaks off and counts."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flaky import FakeClock, Fault, FlakyProxy
from serving import free_port, wait_until_it_answers

from sao_lib.engines import Completion, Conversation
from sao_lib.engines.journal import JOURNAL
from sao_lib.engines.models import resolve
from sao_lib.engines.openai_api import OpenAIEngine, most_usd
from sao_lib.errors import SaoError
from sao_lib.files import append_rows, read_rows
from sao_lib.method import judge
from sao_lib.method.feedback import open_source
from sao_lib.method.synthesize import first_sentences
from sao_lib.runs import Run
from sao_lib.settings import PARAMS, ROOT, Engine, Judge, Policy

SMOL = "embedded/smollm2-135m-instruct"
KEY = "only-for-this-test"
TEXTS = ["Why is the sky blue?", "Name three fruits.", "Write a short note to a neighbour about a parcel."]
REQUESTS = [Conversation(({"role": "user", "content": text},)) for text in TEXTS]
MANY = [Conversation(({"role": "user", "content": f"Count on from {n}."},)) for n in range(20)]
Replies = list[Completion]
KEPT = 5  # replies that come before the API fails
WORKERS = Engine.model_fields["api_workers"].default


def engine_in(folder: Path, max_usd: float = 1.0) -> OpenAIEngine:
    return OpenAIEngine("gpt-4o-mini", Engine(kind="openai", max_usd=max_usd), folder / "engine.log")


def ask(folder: Path, requests: list[Conversation], max_usd: float = 1.0) -> Replies:
    return engine_in(folder, max_usd).generate(requests, 6, 0.0, [0] * len(requests))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """vLLM's own OpenAI-compatible server with the embedded model, on loopback and in the environment."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(resolve(SMOL))]
    command += ["--served-model-name", "gpt-4o-mini", "unlisted", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--max-model-len", "1024", "--api-key", KEY, "--max-logprobs", "20", "--dtype", "float32"]
    command += ["--enforce-eager"]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until_it_answers(f"http://127.0.0.1:{port}/health", process)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{port}/v1")
            patch.setenv("OPENAI_API_KEY", KEY)
            yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture
def api(server: str, tmp_path: Path) -> OpenAIEngine:
    return engine_in(tmp_path)


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


@pytest.fixture
def proxy(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyProxy]:
    """In front of the server, and OPENAI_BASE_URL."""
    with FlakyProxy(server) as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.05,))
        thread.start()
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{found.server_port}/v1")
        yield found
        found.shutdown()
        thread.join()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    found = FakeClock()
    monkeypatch.setattr("openai._base_client.time", found)
    return found


@pytest.fixture(scope="module")
def uninterrupted(server: str, tmp_path_factory: pytest.TempPathFactory) -> Replies:
    return ask(tmp_path_factory.mktemp("uninterrupted"), MANY)


def test_refused_and_broken_calls_are_made_again(
    proxy: FlakyProxy, clock: FakeClock, uninterrupted: Replies, tmp_path: Path
) -> None:
    faults = {0: Fault(429, {"Retry-After": "7.25"}), 1: Fault(0), 2: Fault(503), 3: Fault(429)}
    proxy.fault = faults.get
    assert ask(tmp_path, MANY[:4]) == uninterrupted[:4]
    assert (len(proxy.asked), len(clock)) == (8, 4)
    assert 7.25 in clock
    assert len(read_rows(tmp_path / JOURNAL)) == 4
    assert KEY not in (tmp_path / JOURNAL).read_text()


def test_a_rate_limited_minute_is_survived(
    proxy: FlakyProxy, clock: FakeClock, uninterrupted: Replies, tmp_path: Path
) -> None:
    proxy.fault = lambda n: Fault(429) if clock.time() < 60 else None
    assert ask(tmp_path, MANY[:1]) == uninterrupted[:1]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault(400), "answered 400"),
        (Fault(429, {"Retry-After": "3600"}), "answered 429"),
        (Fault(500), "answered 500"),
        (Fault(0), "cannot be reached"),
        (Fault(200, body={}), "gave no completion"),
    ],
)
def test_after_a_failed_call_what_came_is_kept_and_not_asked_again(
    fault: Fault,
    reason: str,
    proxy: FlakyProxy,
    uninterrupted: Replies,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("sao_lib.engines.openai_api.RETRIES", 0)
    proxy.fault = lambda n: None if n < KEPT else fault
    with pytest.raises(SaoError, match=rf"{reason}.*; 5 of these 20 replies are kept .* same command continues"):
        ask(tmp_path, MANY)
    first = proxy.asked[:]
    assert len(first) <= KEPT + WORKERS  # a worker starts none after its own failure, and most none after another's
    proxy.fault = lambda n: None
    assert ask(tmp_path, MANY) == uninterrupted
    assert not set(first[:KEPT]) & set(proxy.asked[len(first) :])
    assert len(proxy.asked) == len(first) + len(MANY) - KEPT


def test_a_killed_process_is_continued_and_what_it_spent_counts(
    proxy: FlakyProxy, uninterrupted: Replies, tmp_path: Path
) -> None:
    killed, journal = threading.Event(), tmp_path / JOURNAL
    proxy.fault = lambda n: None if n < KEPT else Fault(0) if killed.wait(120) else None
    elsewhere = "import sys, test_openai as t; t.ask(t.Path(sys.argv[1]), t.MANY)"
    process = subprocess.Popen([sys.executable, "-c", elsewhere, str(tmp_path)], cwd=Path(__file__).parent)
    try:
        while len(proxy.asked) < KEPT + WORKERS or not journal.is_file() or len(read_rows(journal)) < KEPT:
            assert process.poll() is None, "the process ended before it was killed"
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed.set()
    with journal.open("a") as file:
        file.write('{"request": "torn')
    first, proxy.fault = proxy.asked[:], lambda n: None
    spent = sum(row["usd"] for row in read_rows(journal))
    missing = [c for c in MANY if c.messages[0]["content"] not in first[:KEPT]]
    assert len(missing) == len(MANY) - KEPT
    enough = spent + most_usd("gpt-4o-mini", missing, 6)
    with pytest.raises(SaoError, match="These 15 calls .* with .* spent before: more than the cap"):
        ask(tmp_path, MANY, enough - spent / 2)
    assert proxy.asked == first
    assert ask(tmp_path, MANY, enough + spent / 2) == uninterrupted
    assert sorted(proxy.asked[len(first) :]) == sorted(c.messages[0]["content"] for c in missing)


def test_after_the_replies_the_cap_counts_what_they_cost(proxy: FlakyProxy, tmp_path: Path) -> None:
    engine = engine_in(tmp_path)
    out = engine.generate(MANY[:2], 6, 0.0, [0, 0])
    cost = (0.15 * sum(c.tokens_in for c in out) + 0.60 * sum(c.tokens_out for c in out)) / 1e6
    assert engine.journal.spent == pytest.approx(cost) == pytest.approx(engine_in(tmp_path).journal.spent)
    message = {"role": "assistant", "content": "Yes."}
    proxy.fault = lambda n: Fault(200, body={"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
    assert engine.generate(MANY[2:3], 6, 0.0, [0]) == [Completion("Yes.", True, 0, 0)]
    assert engine.journal.spent == pytest.approx(cost + most_usd("gpt-4o-mini", MANY[2:3], 6))  # no usage: the most


def test_equal_requests_of_a_batch_are_calls_of_their_own(proxy: FlakyProxy, tmp_path: Path) -> None:
    for count, asked in ((2, 2), (2, 2), (3, 3)):
        assert len(ask(tmp_path, MANY[:1] * count)) == count
        assert len(proxy.asked) == asked
    assert len({(row["request"], row["occurrence"]) for row in read_rows(tmp_path / JOURNAL)}) == 3


def test_the_judge_stage_continues_within_a_chunk(
    proxy: FlakyProxy, make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sao_lib.engines.openai_api.RETRIES", 0)
    settings = Judge(source="llm", template="params/templates/ranking_small.yaml", reading="logprob", orders="both")
    rows = [
        {"id": str(n), "prompt": f"What is {n}?", "responses": [{"text": "A number."}, {"text": "A fruit."}]}
        for n in range(8)
    ]

    def verdicts(run: Run) -> list[dict[str, Any]]:
        policy, api = Policy(model="openai/gpt-4o-mini"), Engine(kind="openai", max_usd=1)
        source = open_source(settings, policy, api, 0, run.folder / "engine.log")
        return judge.rank(run, rows, source.verdicts, 8)

    run = make_run()
    proxy.fault = lambda n: None if n < KEPT else Fault(400)
    with pytest.raises(SaoError, match="5 of these 16 replies"):
        verdicts(run)
    first = len(proxy.asked)
    proxy.fault = lambda n: None
    found = verdicts(run)
    assert len(proxy.asked) == first + 16 - KEPT
    again = verdicts(Run(run.spec, tmp_path / "again"))
    assert [row["margin"] for row in found] == pytest.approx([row["margin"] for row in again], abs=2e-3)


def test_a_damaged_journal_is_not_to_be_deleted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    append_rows(tmp_path / JOURNAL, [{"request": "a", "occurrence": 0, "usd": 0.1}])
    (tmp_path / JOURNAL).write_text("{damaged\n" + (tmp_path / JOURNAL).read_text())
    with pytest.raises(SaoError, match="line 1, is not valid JSON; delete that line alone"):
        engine_in(tmp_path)


def test_a_model_behind_the_api_answers_the_policys_prompts(server: str, tmp_path: Path) -> None:
    given = ["synthesize.n=4", "synthesize.pairs=2", "judge.source=length", "judge.audit_questions=1",
             "engine.kind=transformers"]  # fmt: skip  # of the policy, which writes the prompts
    words = ["reproduce", "table13", "--set", "synthesize.generator.model=openai/gpt-4o-mini", *given]
    environment = {**os.environ, "SAO_OUTPUTS": str(tmp_path)}
    command = [sys.executable, "-m", "sao_lib", *words]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    (journal,) = tmp_path.glob(f"cpu/synthesize/*answers-by-gpt-4o-mini*/{JOURNAL}")
    replies = {first_sentences(row["text"].strip(), 2) for row in read_rows(journal)}
    rows = read_rows(journal.parent / "responses.jsonl")
    assert {response["text"] for row in rows for response in row["responses"]} == replies
    assert len(rows) == 2
