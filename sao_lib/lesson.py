"""The notebooks' own small runs: what a notebook opens where no run is named, on rows that come with the repository.

`notebooks/data/README.md` says how the rows were made. A lesson run is never one of a table's runs.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from sao_lib import machine
from sao_lib.errors import SaoError
from sao_lib.files import write_atomic
from sao_lib.settings import NOTEBOOKS, PARAMS, ROOT
from sao_lib.yaml_files import read_yaml

LESSONS = {**NOTEBOOKS, "dose": "11_dose"}  # the dose is a table, so a run of the stage `ablate`
DATA = ROOT / "notebooks" / "data"
SPECS = DATA / "specs"  # <lesson>.json, as `launch.lessons` planned them
ROWS = DATA / "runs"  # the finished runs that lessons read, in the place of outputs/


def spec_of(name: str) -> dict[str, Any]:
    """The spec of the lesson `name` (of LESSONS) as this machine can run it; raises SaoError if there is none."""
    try:
        spec = dict(json.loads((SPECS / f"{name}.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise SaoError(f"There is no lesson '{name}'; there are: {', '.join(LESSONS)}.") from None
    profile = read_yaml(PARAMS / "profiles" / "cpu.yaml")
    for holding in (section for section, holds in machine.SECTIONS.items() if holds()):
        for section, instead in profile[holding].items():
            if spec["params"].get(section):
                spec["params"][section] |= instead
    return spec


def folder_of(name: str, lessons: Path, manifest: str) -> Path:
    """The folder of this lesson in `lessons`: as an interrupted one left it, else with nothing but its spec.

    A lesson that has its `manifest` begins anew, as does one with another spec.
    """
    spec = json.dumps(spec_of(name), indent=1, ensure_ascii=False) + "\n"
    folder = lessons / LESSONS[name]
    file = folder / "spec.yaml"
    if (folder / manifest).is_file() or not file.is_file() or file.read_text(encoding="utf-8") != spec:
        shutil.rmtree(folder, ignore_errors=True)
        write_atomic(file, spec)
    return folder
