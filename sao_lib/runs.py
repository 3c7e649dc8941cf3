"""A run's folder: its identity, and a manifest written last.

No manifest (`run.json`), no result; with one, nothing in the folder changes any more. Rows are appended in whole
chunks and flushed to disk, so that a killed run continues at the first chunk that is not complete, with the same chunk
borders.
"""

import atexit
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sao_lib import hub, lesson, provenance, writers
from sao_lib.errors import SaoError
from sao_lib.files import digest, file_digest, read_rows, write_atomic
from sao_lib.progress import TOKENS
from sao_lib.settings import NOTEBOOKS, ROOT, notebook_of

OUTPUTS = Path(os.path.expanduser(os.environ.get("SAO_OUTPUTS") or ROOT / "outputs")).absolute()
MANIFEST = "run.json"
PENDING = "run.pending.json"  # the manifest until the executed notebook stands beside it
LOCK = ".lock"
BEGUN = "begun.json"  # the code that a run which has not finished was made with so far
DECIDES_NOTHING = ("max_usd", "api_workers")  # parameters of an engine that no result depends on
RESULTS = (".jsonl", ".json", ".md", ".csv", ".tex", ".png")
NOTEBOOK = "notebook.ipynb"
AGAIN = "`make reproduce-...` sets this run aside and makes it again."
READ_AGAIN = 8 * 2**20  # bytes: of what is larger, a model's weights, the size alone is looked at again


def identity(spec: dict[str, Any]) -> str:
    """Digest of what a run's results depend on: its spec without name, profile, and what it may spend and how fast."""

    def bare(value: Any) -> Any:
        return {k: bare(v) for k, v in value.items() if k not in DECIDES_NOTHING} if isinstance(value, dict) else value

    return digest({k: bare(v) for k, v in spec.items() if k not in ("name", "profile")})


class Run:
    """One stage with one complete set of parameters, in one folder under outputs/.

    `spec` holds stage, name, profile, params, inputs (role -> folder relative to outputs/) and the
    digests of the parameter files it reads. `copied`: the folder is a copy of a finished run's, to read and to try.
    `inputs_in` is where those folders lie, for lessons another place.
    """

    def __init__(self, spec: dict[str, Any], folder: Path, copied: bool = False, inputs_in: Path | None = None) -> None:
        self.spec, self.folder, self.copied, self.inputs_in = spec, folder, copied, inputs_in or OUTPUTS
        self.started, self.tokens = time.time(), TOKENS.copy()
        self.params: dict[str, Any] = spec["params"]

    @classmethod
    def open(cls, spec_file: str | Path, named: str = "") -> "Run":
        """The run whose spec.yaml (JSON inside) is `spec_file`, an absolute path or one from the repository's root.

        A finished run is read-only: it opens as a copy, which cells may change and which goes with the process.
        Where `spec_file` is empty, the lesson `named`: a run in outputs/lesson/ on the rows of `notebooks/data`.
        """
        writers.die_with_parent()
        if not str(spec_file) and named:
            print("A lesson run: small, on rows that come with the suite; no table reads it.")
            folder = lesson.folder_of(named, OUTPUTS / "lesson", MANIFEST)
            run = cls(lesson.spec_of(named), folder, inputs_in=lesson.ROWS)
            run._begin()
            return run
        path = ROOT / spec_file
        try:
            spec = json.loads(path.read_text())
        except (FileNotFoundError, IsADirectoryError):
            raise SaoError(
                f"spec is '{spec_file}', which is no run's spec.yaml; set it to one under outputs/ or run make."
            ) from None
        except (ValueError, RecursionError):
            raise SaoError(f"{path} is damaged; run `make reproduce-...` again to write it anew.") from None
        if (path.parent / MANIFEST).is_file():
            print("This run has finished and stays as it is: the cells below work on a copy of its folder.")
            return cls(spec, _copy(path.parent), copied=True)
        run = cls(spec, path.parent)
        if writers.STARTED_BY in os.environ:
            writers.hold(run.folder)
        run._begin()
        return run

    def _begin(self) -> None:
        """Note the code that makes this run; rows that another state of it left here are not forgotten."""
        if self.spec["stage"] in NOTEBOOKS:
            file, now = self.folder / BEGUN, provenance.code_of(notebook_of(self.spec))
            left = any(p.name != BEGUN and (p.suffix == ".jsonl" or p.is_dir()) for p in self.folder.iterdir())
            begun = json.loads(file.read_text()) if file.is_file() and left else None
            if begun is None or provenance.changed(begun, now):
                write_atomic(file, json.dumps(provenance.continued(begun, now)))

    def input(self, role: str) -> "Run":
        """The finished run this one reads in `role`."""
        found = load(self.inputs_in / self.spec["inputs"][role], self.inputs_in)
        if found is None:
            raise SaoError(f"{self.spec['inputs'][role]} has not finished; run it before {self.folder.name}.")
        return found

    @property
    def is_lesson(self) -> bool:
        """Whether it reads the rows that come with the notebooks: data, of whatever code made them."""
        return self.inputs_in == lesson.ROWS

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
        """Write the manifest, last and atomically: parameters, inputs, code, versions, hardware, cost, results.

        While `launch.execute` holds the run's lock it is left as run.pending.json, and becomes the manifest when the
        executed notebook is in its place.
        """
        files = sorted(p for p in self.folder.rglob("*") if p.is_file() and _is_result(p.relative_to(self.folder)))
        named = {p.relative_to(self.folder).as_posix(): p for p in files}
        begun = self.folder / BEGUN
        manifest = {
            "spec": self.spec,
            "results": results,
            "code": json.loads(begun.read_text()) if begun.is_file() else None,
            "made_from": {role: result_digest(self.inputs_in / folder) for role, folder in self.spec["inputs"].items()},
            "hub_commits": {n: found for n in hub.named_in(self.params) if (found := hub.commit(n))},
            "files": {name: path.stat().st_size for name, path in named.items()},
            "sha256": {name: file_digest(path) for name, path in named.items()},
            "tokens": dict(TOKENS - self.tokens),
            "seconds": round(time.time() - self.started, 1),
            "peak_memory_gib": round(peak_memory_gib(), 2),
            **provenance.surroundings(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        name = PENDING if _locked(self.folder) else MANIFEST
        write_atomic(self.folder / name, _sealed(manifest))
        if name == MANIFEST:
            begun.unlink(missing_ok=True)
        return manifest


def conclude(folder: Path) -> None:
    """Make the manifest that waits for its notebook the run's own: with it the run is whole."""
    manifest = json.loads((folder / PENDING).read_text())
    write_atomic(folder / MANIFEST, _sealed({**manifest, "notebook": NOTEBOOK}))
    for done_with in (PENDING, BEGUN):
        (folder / done_with).unlink(missing_ok=True)


def clear(folder: Path) -> None:
    """Remove what a killed command left on its way; only for who holds the run's lock."""
    for left in (*folder.glob(".*.tmp"), folder / "notebook.tmp.ipynb", folder / PENDING):
        if not left.name.startswith(".spec.yaml"):  # written without the lock
            left.unlink(missing_ok=True)


def _sealed(manifest: dict[str, Any]) -> str:
    """A manifest's text, with a digest of all that it says."""
    plain = json.loads(json.dumps({key: value for key, value in manifest.items() if key != "digest"}))
    return json.dumps({**plain, "digest": digest(plain)}, indent=1, ensure_ascii=False) + "\n"


def _is_result(path: Path) -> bool:
    """Rows, tables, figures and the trained model; not notes of the work on the way."""
    if path.parts[0] == "model":
        return True
    return len(path.parts) == 1 and path.suffix in RESULTS and path.name not in (MANIFEST, PENDING, BEGUN)


def _locked(folder: Path) -> bool:
    """Whether another process, the one that executes this run's notebook, holds its lock."""
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True


def _copy(finished: Path) -> Path:
    """The folder of a finished run in a temporary place, without its manifest; its trained model is linked to."""
    target = Path(tempfile.mkdtemp(prefix="sao-")) / finished.name
    atexit.register(shutil.rmtree, target.parent, ignore_errors=True)
    target.mkdir()
    for path in finished.iterdir():
        if path.is_dir():
            (target / path.name).symlink_to(path.resolve())
        elif path.name not in (MANIFEST, LOCK):
            shutil.copy2(path, target)
    return target


def result_digest(folder: Path) -> str | None:
    """Digest of what a finished run gave, its results and files and not when or where; None if it is not known."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return digest([manifest["results"], manifest["sha256"]])[:12]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def outdated(folder: Path) -> list[str]:
    """What has changed since the finished run in `folder` was made: parts of its code, and runs that it read."""
    manifest = json.loads((folder / MANIFEST).read_text())
    spec = manifest["spec"]
    reasons = provenance.changed(manifest.get("code"), provenance.code_of(notebook_of(spec)))
    made_from = manifest.get("made_from", {})
    return reasons + [f"its input {name}" for role, name in spec["inputs"].items()
                      if made_from.get(role) != result_digest(OUTPUTS / name)]  # fmt: skip


def ancestry(folders: Iterable[str], root: Path | None = None) -> list[str]:
    """The finished runs in `folders` (relative to `root`, else outputs/) and all they were made from, each once."""
    found: list[str] = []
    waiting = list(folders)
    while waiting:
        folder = waiting.pop(0)
        if folder not in found and (run := load((root or OUTPUTS) / folder)):
            found.append(folder)
            waiting += run.spec["inputs"].values()
    return found


def outdated_behind(folders: Iterable[str]) -> dict[str, list[str]]:
    """The runs in `folders` and behind them that were made by other code or from other input, with what has changed."""
    return {folder: why for folder in ancestry(folders) if (why := outdated(OUTPUTS / folder))}


def seconds_behind(folders: Iterable[str], root: Path) -> float:
    """What the runs in `folders` (relative to `root`) and behind them took together, by their manifests."""
    manifests = [json.loads((root / folder / MANIFEST).read_text()) for folder in ancestry(folders, root)]
    return float(sum(manifest.get("seconds", 0) for manifest in manifests))


def load(folder: Path, inputs_in: Path | None = None) -> Run | None:
    """The finished run in `folder`, None if it has not finished; what it read lies in `inputs_in`, else in outputs/.

    Raises SaoError when the manifest is not as it was written, or a file that it lists has another size or, where
    reading it is cheap, other content. The executed notebook may be opened and saved; it has to be there.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text())
        run = Run(manifest["spec"], folder, inputs_in=inputs_in)
        listed = {name: (size, manifest.get("sha256", {}).get(name)) for name, size in manifest["files"].items()}
        sealed = manifest.pop("digest", None)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise SaoError(f"{path} is damaged. {AGAIN}") from None
    if sealed not in (None, digest(manifest)):
        raise SaoError(f"{path} is not as it was written. {AGAIN}")
    for name, (size, sha256) in listed.items():
        if not _as_made(folder / name, size, sha256):
            raise SaoError(f"{folder / name} is not as its manifest says ({size} bytes). {AGAIN}")
    if not (folder / manifest.get("notebook", MANIFEST)).is_file():
        raise SaoError(f"{folder / NOTEBOOK} is missing. {AGAIN}")
    return run


def _as_made(file: Path, size: int, sha256: str | None) -> bool:
    try:
        now = file.stat()
    except OSError:
        return False
    if now.st_size != size or not sha256 or size > READ_AGAIN:
        return now.st_size == size
    return _digest_at(file, now.st_mtime_ns, size) == sha256


@cache
def _digest_at(file: Path, _changed: int, _size: int) -> str:
    """A file's digest, read once a process and change."""
    return file_digest(file)


def peak_memory_gib() -> float:
    """Largest resident size of this process or a child of it, GiB."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    per_gib = 2**30 if sys.platform == "darwin" else 2**20  # macOS counts bytes, Linux KiB
    return max(resource.getrusage(kind).ru_maxrss for kind in kinds) / per_gib
