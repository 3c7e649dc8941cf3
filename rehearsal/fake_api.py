"""A fake of an OpenAI-compatible API on this machine: it lists every model and names a winner at once."""

import contextlib
import json
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

from rehearsal.canned import CannedEngine
from sao_lib.engines import Conversation

KEY = "EMPTY"  # too short for a secret, so that nothing is masked for it
LABELS = ("m", "M", "1", "2")


class FakeApi(ThreadingHTTPServer):
    """Replies with canned texts; `models` are those that it lists."""

    def __init__(self, models: Sequence[str]) -> None:
        super().__init__(("127.0.0.1", 0), FakeHandler)
        self.models, self.engine = models, CannedEngine()


class FakeHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept

    def do_GET(self) -> None:
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "nobody"} for name in self._server.models]
        self._answer({"object": "list", "data": listed})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        conversation = Conversation(tuple(asked["messages"]))
        said = self._server.engine.generate([conversation], asked["max_completion_tokens"], 0.0, [0])[0]
        odds = self._server.engine.label_logprobs([conversation], LABELS)[0]
        top = [{"token": token, "logprob": p} for token, p in zip(LABELS, odds, strict=True)]
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": said.text},
            "logprobs": {"content": [{**top[0], "top_logprobs": top}]},
        }
        self._answer({"choices": [choice], "usage": {"prompt_tokens": said.tokens_in, "completion_tokens": 1}})

    @property
    def _server(self) -> FakeApi:
        return cast(FakeApi, self.server)

    def _answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def served(models: Sequence[str]) -> Iterator[dict[str, str]]:
    """The environment in which the API is asked, for as long as the body runs; empty where there are no `models`."""
    if not models:
        yield {}
        return
    with FakeApi(models) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
        thread.start()
        try:
            yield {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": f"http://127.0.0.1:{server.server_port}/v1"}
        finally:
            server.shutdown()
            thread.join()
