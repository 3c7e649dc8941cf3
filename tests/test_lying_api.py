"""An API server that misbehaves: nothing is lost, no cap lifted, no key shown, and every refusal one sentence."""

import base64
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flaky import FakeClock, Fault, FlakyHandler, FlakyProxy

from sao_lib.__main__ import main
from sao_lib.engines import Conversation, openai_api
from sao_lib.engines.journal import JOURNAL
from sao_lib.engines.openai_api import OpenAIEngine, require_key
from sao_lib.engines.openai_reply import read_models, read_reply
from sao_lib.errors import SaoError, in_one_line, masked
from sao_lib.files import append_rows, read_rows
from sao_lib.settings import ROOT, Engine

KEY = "secret-T3BlbkFJ0a1b2c3d4e5f"
ASKED = [Conversation(({"role": "user", "content": f"Count on from {n}."},)) for n in range(3)]


def completion(content: Any = "Yes.", usage: Any = None, **choice: Any) -> dict[str, Any]:
    first = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop", **choice}
    return {"choices": [first], "usage": usage or {"prompt_tokens": 12, "completion_tokens": 3}}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyProxy]:
    """Every request gets its fault."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(openai_api, "PAUSE", 0)
    monkeypatch.setattr("openai._base_client.time", FakeClock())
    with FlakyProxy("http://127.0.0.1:9") as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.05,))
        thread.start()
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{found.server_port}/v1")
        yield found
        found.shutdown()
        thread.join()


def engine_in(folder: Path, max_usd: float = 1.0) -> OpenAIEngine:
    return OpenAIEngine("gpt-4o-mini", Engine(kind="openai", max_usd=max_usd, api_workers=1), folder / "engine.log")


WHOLE = json.dumps(completion()).encode()


@pytest.mark.parametrize(
    "fault",
    [
        Fault(200, raw=WHOLE[:40]), Fault(200, raw=WHOLE[:40], announced=len(WHOLE)), Fault(200, raw=b""),
        Fault(200, raw=b"\xff\xfe\x00"), Fault(200, raw=b"<html>one moment</html>"), Fault(0), Fault(429), Fault(502),
        Fault(200, raw=b"[" * 100_000),
    ],
)  # fmt: skip
def test_what_a_cut_connection_leaves_is_asked_again(fault: Fault, server: FlakyProxy, tmp_path: Path) -> None:
    server.fault = lambda n: fault if n == 0 else Fault(200, body=completion())
    assert [c.text for c in engine_in(tmp_path).generate(ASKED, 6, 0.0, [0, 0, 0])] == ["Yes."] * 3
    assert len(server.asked) == 4


@pytest.mark.parametrize(
    ("reply", "text", "paid"),
    [
        (completion(usage={"prompt_tokens": "12", "completion_tokens": "3"}), "Yes.", False),
        (completion(usage={"prompt_tokens": -(10**12), "completion_tokens": 3}), "Yes.", False),
        (completion(usage={"prompt_tokens": 12, "completion_tokens": True}), "Yes.", False),
        (completion(usage={"prompt_tokens": 10**400, "completion_tokens": 3}), "Yes.", False),
        (completion(usage=[1]), "Yes.", False),
        (completion(usage={"prompt_tokens": float("nan"), "completion_tokens": 3}), "Yes.", False),
        (completion(content=None), "", True),
        (completion(content=["Yes."]), "", True),
        (completion(content=7), "", True),
        (completion(message=None), "", True),
        (completion(content="A lone \ud800 surrogate."), "A lone \ufffd surrogate.", True),
        (completion(content=f"Your key is {KEY}."), "Your key is ***.", True),
        (completion(finish_reason={"a": 1}, logprobs={"content": [None]}), "Yes.", True),
    ],
)
def test_a_paid_reply_is_kept_whatever_else_is_wrong_with_it(
    reply: dict[str, Any], text: str, paid: bool, server: FlakyProxy, tmp_path: Path
) -> None:
    """`paid`: by the tokens it says; otherwise it counts as the most that it can have cost."""
    server.fault = lambda n: Fault(200, body=reply)
    assert [c.text for c in engine_in(tmp_path).generate(ASKED[:1], 6, 0.0, [0])] == [text]
    engine = engine_in(tmp_path)
    most = openai_api.most_usd("gpt-4o-mini", ASKED[:1], 6)
    assert engine.journal.spent == pytest.approx(openai_api.usd("gpt-4o-mini", 12, 3) if paid else most)
    assert [c.text for c in engine.generate(ASKED[:1], 6, 0.0, [0])] == [text]
    assert len(server.asked) == 1, "paid replies are not asked again"


def test_no_reply_lifts_the_cap(server: FlakyProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    append_rows(tmp_path / JOURNAL, [{"request": "a", "occurrence": 0, "usd": -1e9}])
    assert engine_in(tmp_path).journal.spent == 0
    with pytest.raises(SaoError, match="more than the cap"):
        engine_in(tmp_path, max_usd=1e-9).generate(ASKED, 6, 0.0, [0, 0, 0])


def test_probabilities_that_cannot_be_are_left_out() -> None:
    listed = [("A", -0.5), ("B", "-1"), ("C", 700.0), ("D", None), (None, -1), ("E", float("nan")), ("F", -math.inf)]
    top = [{"token": token, "logprob": p} for token, p in listed]
    body = json.dumps(completion(logprobs={"content": [{"top_logprobs": [*top, "G", 7]}]})).encode()
    found = read_reply(body)
    assert found is not None
    assert found["top_logprobs"] == [["A", -0.5]]


@pytest.mark.parametrize("body", [b"[]", b"7", b"null", b'{"choices": []}', b'{"choices": {}}', b'{"choices": [null]}'])
def test_no_completion_is_one_sentence(body: bytes, server: FlakyProxy, tmp_path: Path) -> None:
    server.fault = lambda n: Fault(200, raw=body)
    with pytest.raises(SaoError, match=r"gave no completion; .*0 of these 3 replies are kept"):
        engine_in(tmp_path).generate(ASKED, 6, 0.0, [0, 0, 0])


def test_what_a_server_says_in_place_of_a_completion_is_said(server: FlakyProxy, tmp_path: Path) -> None:
    server.fault = lambda n: Fault(200, body={"error": {"message": f"no credit left for {KEY}\x1b[2J"}})
    with pytest.raises(SaoError, match=r"gave no completion but: no credit left for \*\*\*\\x1b\[2J; 0 of these 3"):
        engine_in(tmp_path).generate(ASKED, 6, 0.0, [0, 0, 0])


@pytest.mark.parametrize("logprobs", [None, {}, {"content": []}, {"content": [{"token": "A", "logprob": -0.1}]}])
def test_a_server_that_gives_no_probabilities_decides_nothing(
    logprobs: Any, server: FlakyProxy, tmp_path: Path
) -> None:
    server.fault = lambda n: Fault(200, body=completion(logprobs=logprobs))
    for _ in range(2):
        with pytest.raises(SaoError, match="gives no log-probabilities for gpt-4o-mini; set its reading to text"):
            engine_in(tmp_path).label_logprobs(ASKED, ("A", "B"))
    assert len(server.asked) == len(ASKED), "what was paid for is kept"


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (b'{"data": [{"id": "gpt-4o"}, {"id": 5}, {}, "a", null]}', {"gpt-4o"}), (b"[]", set()), (b"7", set()),
        (b'{"data": null}', set()), (b'{"data": {"id": "a"}}', set()), (b'{"data": [{"id": "a\\ud800"}]}', {"a\ufffd"}),
    ],
)  # fmt: skip
def test_a_list_of_models_is_read_with_distrust(body: bytes, names: set[str]) -> None:
    assert read_models(body) == names


@pytest.mark.parametrize("body", [b"<html>", b'{"data": [', b"\xff\xfe\x00", b"", b"[" * 100_000])
def test_a_page_in_place_of_a_list_of_models_is_one_sentence(
    body: bytes, server: FlakyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FlakyHandler, "do_GET", lambda handler: handler.answer(200, body, {}), raising=False)
    with pytest.raises(SaoError, match="gave no list of models but what is no JSON; check OPENAI_BASE_URL"):
        openai_api.check("openai/gpt-4o-mini")


@pytest.mark.parametrize(
    "said",
    [
        f"Bearer {KEY}",
        f"no such key: {KEY[:20]}",
        json.dumps({"headers": {"Authorization": KEY}}),
        KEY[3:],
        "x" * 150 + KEY,
    ],
)
@pytest.mark.parametrize("status", [400, 403, 404, 500])
def test_a_key_that_the_server_repeats_is_nowhere(
    said: str, status: int, server: FlakyProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(openai_api, "RETRIES", 0)
    server.fault = lambda n: Fault(status, body={"error": {"message": said}})
    with pytest.raises(SaoError) as refused:
        engine_in(tmp_path).generate(ASKED, 6, 0.0, [0, 0, 0])
    kept = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY[3:15] not in str(refused.value) + kept
    assert str(status) in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("OPENAI_API_KEY", KEY, KEY), ("HF_TOKEN", "hf_abcdefghijkl", "hf_abcdefghijkl"),
        ("OPENAI_BASE_URL", "https://jane:corr3ct-horse@example.org/v1", "corr3ct-horse"),
        ("https_proxy", "http://jane:corr3ct-horse@proxy:3128", "corr3ct-horse"),
        ("OPENAI_API_KEY", KEY, base64.b64encode(KEY.encode()).decode()),
        ("openai_api_key", KEY, KEY), ("GITHUB_PAT", KEY, KEY), ("DB_PASS", KEY, KEY), ("MY_CREDENTIALS", KEY, KEY),
        ("OPENAI_API_KEY_OLD", KEY, KEY), ("API_KEY_2", KEY, KEY), ("SLURM_JWT", KEY, KEY), ("AUTH_HEADER", KEY, KEY),
        ("SOME_SECRET", 'quo"ted/and+more', 'quo\\"ted/and+more'), ("MY_PASSWORD", "a/b+c=d e", "a%2Fb%2Bc%3Dd%20e"),
    ],
)  # fmt: skip
def test_secrets_of_the_environment_are_masked(
    name: str, value: str, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    for text in (secret, f"before {secret} after", secret * 2):
        assert secret not in masked(text)
        assert secret not in str(SaoError(text))
        assert secret[:12] not in in_one_line(ValueError("x" * 155 + text))
    assert masked("before {} after").format(1) == "before 1 after"


def test_what_is_no_secret_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")  # what vLLM's own examples set
    monkeypatch.setenv("SSL_KEY", "/etc/ssl/private.pem")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "parallel")
    assert masked("EMPTY /etc/ssl/private.pem parallel") == "EMPTY /etc/ssl/private.pem parallel"


def test_a_key_on_the_command_line_gets_into_no_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for given in (f"policy.system={KEY}", f"policy.model=openai/{KEY}", f"{KEY}=1", f"train.data={KEY[:20]}"):
        assert main(["plan", "smoke", f"--changes={given}"]) == 1
        text = capsys.readouterr()
        assert "holds a key of the environment" in text.err
        assert KEY[3:15] not in text.err + text.out


def test_what_nobody_foresaw_is_shown_without_the_key() -> None:
    code = (
        "import runpy, sys\nimport sao_lib.launch.reproduce as reproduce\n"
        "def show(*_):\n    raise {}\nreproduce.show = show\nsys.argv = ['sao_lib', 'plan', 'smoke']\n"
        "runpy.run_module('sao_lib', run_name='__main__')\n"
    )
    for error in (f"RuntimeError('{KEY}')", f"OSError(2, 'No such file', '/tmp/{KEY}')"):
        done = subprocess.run(
            [sys.executable, "-c", code.format(error)],
            cwd=ROOT, env={**os.environ, "OPENAI_API_KEY": KEY}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert "***" in done.stderr
        assert KEY[3:15] not in done.stderr + done.stdout


@pytest.mark.parametrize("path", [f"/{KEY}/v1", f"/v1/{KEY}"])
def test_a_key_in_the_path_of_the_address_is_not_shown(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"https://jane@gateway:8443{path}")
    assert openai_api._place() == "https://gateway:8443/..."


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OPENAI_API_KEY", "sk-abc\n"), ("OPENAI_API_KEY", "sk abc"), ("OPENAI_API_KEY", "sk-\u00e9"),
        ("OPENAI_ORG_ID", "org\r\nX: y"), ("OPENAI_BASE_URL", "not a url"), ("OPENAI_BASE_URL", "localhost:8000/v1"),
        ("OPENAI_BASE_URL", "ftp://host/v1"), ("OPENAI_BASE_URL", "http://"), ("OPENAI_BASE_URL", "http://host:99999"),
        ("OPENAI_BASE_URL", "http://host:x/v1"), ("OPENAI_BASE_URL", "http://[::1/v1"), ("OPENAI_BASE_URL", "http://h\u00f6/"),
        ("OPENAI_BASE_URL", KEY), ("OPENAI_BASE_URL", f"https://host/v1?key={KEY}"), ("OPENAI_BASE_URL", f"https://host/#{KEY}"),
    ],
)  # fmt: skip
def test_what_can_be_no_key_or_address_is_refused_before_anything_is_asked(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    monkeypatch.setenv(name, value)
    with pytest.raises(SaoError, match=f"{name} .*set it again") as refused:
        require_key("openai/gpt-4o")
    assert value.strip() not in str(refused.value)


def test_where_nobody_listens_is_said_after_two_retries_and_not_after_fourteen(
    server: FlakyProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.fault = lambda n: Fault(0)
    with pytest.raises(SaoError, match="cannot be reached"):
        engine_in(tmp_path).generate(ASKED, 6, 0.0, [0, 0, 0])
    assert len(server.asked) == 1 + openai_api.FIRST_RETRIES
    first = len(server.asked)
    server.fault = lambda n: Fault(200, body=completion()) if n == first else Fault(0)
    with pytest.raises(SaoError, match=r"cannot be reached.* 1 of these 3 replies"):
        engine_in(tmp_path).generate(ASKED, 6, 0.0, [0, 0, 0])
    assert len(server.asked) == first + 1 + 1 + openai_api.RETRIES
    assert len(read_rows(tmp_path / JOURNAL)) == 1
