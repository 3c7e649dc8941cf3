"""A fake of the Kubernetes API that snakemake's plugin calls; its node is this machine, its volumes local folders."""

import base64
import json
import os
import signal
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit


class FakePod:
    """A container's command as a process of this machine, with a container's environment and nothing of this one's."""

    def __init__(self, spec: dict[str, Any], environment: dict[str, str], folder: Path) -> None:
        self.log = folder / "log"
        (folder / "workdir").mkdir(parents=True)
        container = spec["containers"][0]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*container["command"], *container["args"]],
                cwd=folder / "workdir",
                env={"PATH": os.environ["PATH"], "HOME": str(folder), "SAO_REHEARSAL": "1", **environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)


class FakeKubernetes(ThreadingHTTPServer):
    """Secrets, jobs, and their pods, which run at once; refuses what the real API refuses of such a job."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), FakeApi)
        self.folder, self.evicts = folder, 0  # the next so many pods
        self.full = False  # no node has room
        self.seconds, self.asked = 0.0, threading.Event()  # to say how a job is, and whether one was asked for
        self.secrets: dict[str, dict[str, Any]] = {}
        self.made: dict[str, dict[str, Any]] = {}  # every job ever made
        self.pods: dict[str, FakePod] = {}  # by job, as long as it is not deleted
        self.evicted: set[str] = set()
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, method: str, kind: str, rest: list[str], asked: dict[str, str], body: Any) -> tuple[int, Any]:
        name = rest[0] if rest else ""
        if kind == "jobs" and method == "GET":
            self.asked.set()
            time.sleep(self.seconds)
        with self.lock:
            if method == "POST":
                return self.create(kind, body)
            if kind == "secrets":
                return 200, self.secrets.pop(name)
            if kind == "pods" and not rest:
                job = asked["labelSelector"].removeprefix("job-name=")
                return 200, {"items": [self.pod(job)] if job in self.pods else []}
            if kind == "pods" and method == "GET":
                return self.log(name.removesuffix("-pod"), asked)
            if kind == "jobs" and method == "GET":
                code = self.pods[name].process.poll()
                return 200, {"status": {"failed": int(bool(code)), "succeeded": int(code == 0)}}
            self.pods[name.removesuffix("-pod")].end()
            if kind == "jobs":
                del self.pods[name]
            return 200, {}

    def create(self, kind: str, body: Any) -> tuple[int, Any]:
        name = body["metadata"]["name"]
        if kind == "secrets":
            self.secrets[name] = body["data"]
            return 201, body
        spec = body["spec"]["template"]["spec"]
        container = spec["containers"][0]
        asked = container["resources"]
        if asked["requests"].get("nvidia.com/gpu") != asked.get("limits", {}).get("nvidia.com/gpu"):
            return 422, {"message": "nvidia.com/gpu: Limit must be set for non overcommitable resources"}
        volumes = [volume["name"] for volume in spec["volumes"]]
        if len(set(volumes)) < len(volumes) or {m["name"] for m in container["volumeMounts"]} - set(volumes):
            return 422, {"message": "volumeMounts: Not found"}
        keys = {e["name"]: e["valueFrom"]["secretKeyRef"] for e in container["env"]}
        environment = {n: base64.b64decode(self.secrets[k["name"]][k["key"]]).decode() for n, k in keys.items()}
        self.made[name] = body
        if self.evicts or self.full:
            spec = {"containers": [{"command": ["/bin/sh"], "args": ["-c", "sleep 600" if self.full else "exit 137"]}]}
        self.evicted |= {name} if self.evicts else set()
        self.evicts = max(0, self.evicts - 1)
        self.pods[name] = FakePod(spec, environment, self.folder / name)
        return 201, body

    def pod(self, job: str) -> dict[str, Any]:
        metadata = {"name": f"{job}-pod", "creationTimestamp": "2026-01-01T00:00:00Z"}
        if self.full:
            why = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why}
            waiting = {"phase": "Pending", "conditions": [condition]}
            return {"metadata": metadata, "spec": {"containers": []}, "status": waiting}
        code = self.pods[job].process.poll()
        state = {"running": {}} if code is None else {"terminated": {"exitCode": code}}
        required = {"image": "", "imageID": "", "ready": False, "restartCount": 0}
        status: dict[str, Any] = {"containerStatuses": [{"name": "snakemake", "state": state, **required}]}
        if job in self.evicted:
            status |= {"reason": "Evicted", "message": "The node was low on resource: memory."}
        return {"metadata": metadata, "spec": {"containers": []}, "status": status}

    def log(self, job: str, asked: dict[str, str]) -> tuple[int, Any]:
        if job in self.evicted:
            return 400, {"message": f'container "snakemake" in pod "{job}-pod" is terminated'}
        if asked.get("previous", "").lower() == "true":
            return 400, {"message": f'previous terminated container "snakemake" in pod "{job}-pod" not found'}
        return 200, self.pods[job].log.read_text()


class FakeApi(BaseHTTPRequestHandler):
    server: FakeKubernetes

    def respond(self) -> None:
        url = urlsplit(self.path)
        kind, *rest = url.path.split("/namespaces/sao/")[1].split("/")
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        asked = {key: values[0] for key, values in parse_qs(url.query).items()}
        try:
            status, content = self.server.answer(self.command, kind, rest, asked, body)
        except KeyError as name:
            status, content = 404, {"message": f"{kind} {name} not found"}
        text = content if isinstance(content, str) else json.dumps(content)
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    do_GET = do_POST = do_DELETE = respond  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Silent."""
