"""Which models an API has is asked before anything starts: against a server on loopback that lists models."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sao_lib.engines import openai_api
from sao_lib.errors import SaoError
from sao_lib.launch import reproduce
from sao_lib.plan import planning as plan

Serve = Callable[..., list[str]]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Starts an API that lists `models`, or answers `status`; gives the paths that it is asked for."""
    servers = []

    def start(*models: str, status: int = 200) -> list[str]:
        asked: list[str] = []

        class Api(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                body = json.dumps({"object": "list", "data": [{"id": m, "object": "model"} for m in models]}).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        monkeypatch.setenv("OPENAI_API_KEY", "only-for-this-test")
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
        return asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_model_that_was_shut_down_is_named_with_those_that_are_there(serve: Serve) -> None:
    asked = serve("gpt-4.1-2025-04-14", "gpt-4o-2024-08-06", "whisper-1")
    openai_api.check("openai/gpt-4.1-2025-04-14")
    with pytest.raises(SaoError, match=r"lists no model gpt-4-1106-preview.* e\.g\. .*gpt-4"):
        openai_api.check("openai/gpt-4-1106-preview")
    assert asked == ["/v1/models"]  # once for all


@pytest.mark.parametrize(("status", "said"), [(401, "refused OPENAI_API_KEY"), (400, "answered 400")])
def test_a_wrong_key_and_an_api_that_cannot_answer_are_one_sentence(serve: Serve, status: int, said: str) -> None:
    serve(status=status)
    with pytest.raises(SaoError, match=said):
        openai_api.check("openai/gpt-4o")


def test_a_server_without_a_list_is_believed(serve: Serve) -> None:
    serve(status=404)
    openai_api.check("openai/anything")


def test_an_api_that_is_not_there_is_one_sentence(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    serve("gpt-4o")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    with pytest.raises(SaoError, match="cannot be reached"):
        openai_api.check("openai/gpt-4o")


def test_table_2_stops_before_the_first_run_where_its_judge_was_shut_down(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve("gpt-4o-2024-08-06")
    started: list[object] = []
    monkeypatch.setattr(reproduce, "run_graph", lambda *given: started.append(given))
    monkeypatch.setattr(plan, "_model_there", lambda model: None)
    monkeypatch.setattr(plan, "_source_there", lambda source: None)
    monkeypatch.setattr(reproduce, "_check_gpus", lambda *given: None)
    with pytest.raises(SaoError, match=r"lists no model gpt-4\.1-2025-04-14"):
        reproduce.reproduce("paper", ["table2"], [])
    assert not started


@pytest.mark.parametrize("profile", ["gpu", "paper"])
def test_what_stands_in_for_the_judge_that_was_shut_down_is_labelled(
    profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    for row in plan.make(profile, "table2").rows:
        assert row.settings.evaluate.judge_model == "openai/gpt-4.1-2025-04-14"
        assert "judged by GPT-4.1 for GPT-4-Turbo" in row.label
