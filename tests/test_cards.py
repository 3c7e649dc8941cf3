"""Cards: what this machine lacks, and that every run sees the cards it states and no others; nvidia-smi is a fake."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from sao_lib.errors import SaoError
from sao_lib.launch import cards, cluster, graph, reproduce
from sao_lib.launch.doctor import doctor
from sao_lib.plan import planning as plan
from sao_lib.plan.chain import Planned
from sao_lib.settings import ROOT, Machine

FAKE_SMI = """#!/bin/sh
case "$1" in
*compute-apps*) echo 'GPU-1, 74000, 4242, VLLM::EngineCore' ;;
*) for n in {numbers}; do echo "$n, NVIDIA A100-SXM4-80GB, {mib}, {driver}, GPU-$n"; done ;;
esac
"""
Smi = Callable[..., None]


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Smi:
    """Puts a fake nvidia-smi into PATH, and a torch that finds as many cards as it is told beside it."""

    def put(
        count: int, driver: str = "580.95.05", mib: int | str = 81920, cuda: str = "13.0", torch: int | None = None
    ) -> None:
        fake = tmp_path / "bin" / "nvidia-smi"
        fake.parent.mkdir(exist_ok=True)
        fake.write_text(FAKE_SMI.format(numbers=" ".join(map(str, range(count))), mib=mib, driver=driver))
        fake.chmod(0o755)
        monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
        monkeypatch.delenv(cards.VISIBLE, raising=False)
        monkeypatch.setattr(cards, "_torch", lambda visible: (cuda, count if torch is None else torch))
        monkeypatch.setattr(cards, "SHM", Path("/"))

    return put


def machine(gpus: int, **given: float) -> Machine:
    return Machine(gpus=gpus, memory_gib=1, **given)  # type: ignore[arg-type]


def test_a_machine_with_what_is_needed_lacks_nothing(smi: Smi) -> None:
    smi(4)
    assert cards.missing(machine(4, card_gib=75)) == []
    assert cards.missing(machine(0)) == []


def test_a_card_without_memory_of_its_own_shares_the_machines(smi: Smi) -> None:
    smi(1, mib="[N/A]")
    assert cards.cards_here()[0].memory_gib == pytest.approx(psutil.virtual_memory().total / 2**30)


@pytest.mark.parametrize(
    ("given", "needs", "said"),
    [
        ({"count": 2}, {}, r"^4 GPU\(s\), here 2$"),
        ({"count": 4, "driver": "575.57.08", "torch": 0}, {}, "driver 580 or newer for CUDA 13.0, here 575.57.08"),
        ({"count": 4, "driver": "525.1", "cuda": "12.8"}, {}, "^$"),
        ({"count": 4, "mib": 40960}, {"card_gib": 75}, "cards of 75 GiB or more .machine.card_gib., here .* of 40 GiB"),
        ({"count": 4, "torch": 1}, {}, "torch can use, which finds 1 of the 4"),
        ({"count": 4, "cuda": "None", "torch": 0}, {}, "a torch built for CUDA"),
    ],
)
def test_what_is_missing_is_said(smi: Smi, given: dict[str, object], needs: dict[str, float], said: str) -> None:
    smi(**given)
    assert re.search(said, "; ".join(cards.missing(machine(4, **needs))))


def test_a_container_without_shared_memory_is_told_the_option(
    smi: Smi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi(4)
    monkeypatch.setattr(cards.shutil, "disk_usage", lambda path: type("Usage", (), {"total": 64 * 2**20}))
    assert "--ipc=host" in cards.missing(machine(4))[0]
    assert cards.missing(machine(1)) == []


def test_a_driver_that_is_too_old_stops_the_command_before_anything_starts(
    smi: Smi, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi(1, driver="550.54", torch=0)
    started: list[object] = []
    monkeypatch.setattr(reproduce, "run_graph", lambda *given: started.append(given))
    with pytest.raises(SaoError, match=r"Profile gpu-small needs driver 580 or newer for CUDA 13\.0, here 550\.54"):
        reproduce.reproduce("gpu-small", ["table13"], [])
    assert not started


def test_a_run_that_states_cards_never_falls_back_to_the_cpu(smi: Smi) -> None:
    smi(1, torch=0)
    for pool in (["0"], None):  # here, and where a scheduler has chosen
        with pytest.raises(SaoError, match=r"needs 1 GPU\(s\) and torch finds 0"), cards.held(1, pool):
            pytest.fail("the body was run")


def test_a_rehearsal_does_without_cards(smi: Smi, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(0)
    monkeypatch.setenv(cards.REHEARSAL, "1")
    with cards.held(4, None):
        pass


@pytest.mark.parametrize(("pool", "told"), [(["0"], True), (None, False)])
def test_a_group_without_its_cards_says_so_here_and_is_tried_on_another_node_on_a_cluster(
    smi: Smi, tmp_path: Path, pool: list[str] | None, told: bool
) -> None:
    smi(1, torch=0)
    (tmp_path / "plan.json").write_text(json.dumps({"pool": pool, "of": []}))
    with pytest.raises(SaoError, match="torch finds 0"):
        graph.do_group([tmp_path], tmp_path / "plan.json", 1)
    assert (tmp_path / cluster.FAILED).exists() is told


def test_doctor_names_who_holds_a_card(
    smi: Smi, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    smi(2)
    monkeypatch.setattr("sao_lib.launch.doctor._imports", lambda package: "not asked")
    doctor()
    assert "held      card 1: 74000 MiB held by process 4242, VLLM::EngineCore" in capsys.readouterr().out


def test_a_hidden_card_is_not_counted(smi: Smi, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(4)
    monkeypatch.setenv(cards.VISIBLE, "1,GPU-3")
    assert [card.number for card in cards.cards_here()] == ["1", "3"]
    monkeypatch.setenv(cards.VISIBLE, "")
    assert cards.cards_here() == []


def seen() -> str | None:
    return os.environ.get(cards.VISIBLE)


def test_jobs_at_once_hold_different_cards_and_one_more_waits(
    smi: Smi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi(2)
    monkeypatch.setattr(cards.tempfile, "gettempdir", lambda: str(tmp_path))
    first = cards._taken(1, ["0", "1"])
    second = cards._taken(1, ["0", "1"])
    assert {*first, *second} == {"0", "1"}
    waited: list[str] = []
    third = threading.Thread(target=lambda: waited.extend(cards._taken(1, ["0", "1"], pause=0.05)))
    third.start()
    third.join(0.5)
    assert waited == []
    for lock in first.values():
        lock.release()
    third.join(30)
    assert waited == [*first]
    with pytest.raises(SaoError, match="was given 2"):
        cards._taken(3, ["0", "1"])


def test_in_a_job_only_its_cards_are_visible(smi: Smi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(4)
    monkeypatch.setattr(cards.tempfile, "gettempdir", lambda: str(tmp_path))
    with cards.held(2, ["0", "1", "2", "3"]):
        assert seen() == "0,1"
    with cards.held(0, ["0", "1"]):
        assert seen() == ""
    monkeypatch.setenv(cards.VISIBLE, "3")
    with cards.held(1, None):  # the scheduler's choice
        assert seen() == "3"
    assert seen() == "3"


JOB = """
import json, os, pathlib, sys, time
from sao_lib.launch import cards
cards._torch = lambda visible: ("13.0", len(visible.split(",")) if visible else 0)
folder, = map(pathlib.Path, sys.argv[sys.argv.index("run") + 1 : sys.argv.index("--plan")])
plan = json.loads(pathlib.Path(sys.argv[sys.argv.index("--plan") + 1]).read_text())
with cards.held(int(sys.argv[sys.argv.index("--cards") + 1]), plan["pool"]):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "begun").touch()
    ends = time.monotonic() + 400
    while len([*folder.parent.glob("*/begun")]) < 4 and folder.parent.name == "train" and time.monotonic() < ends:
        time.sleep(0.1)
    (folder / "saw.json").write_text(json.dumps(os.environ["CUDA_VISIBLE_DEVICES"]))
    (folder / "run.json").write_text(json.dumps({"spec": {"params": {}}, "files": {}}))
"""


def test_four_cards_run_four_jobs_of_a_profile_for_one_card_and_one_of_an_api_beside_them(
    smi: Smi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real Snakemake and the real pool; a job waits until four have begun, and says which cards it saw."""
    smi(4)
    monkeypatch.setattr("sao_lib.plan.chain.OUTPUTS", tmp_path)
    monkeypatch.setattr(graph, "OUTPUTS", tmp_path)
    monkeypatch.setattr(graph, "cores", lambda: 16)
    monkeypatch.setattr(graph, "idle_share", lambda: 1.0)
    monkeypatch.setattr(graph, "available_gib", lambda: 999.0)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nshift 2\nexec {sys.executable} -c '{JOB}' \"$@\"\n")
    python.chmod(0o755)
    written = graph._plan
    monkeypatch.setattr(graph, "_plan", lambda *given: {**written(*given), "python": str(python)})
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    made = plan.make("gpu", "table6")
    trains = [run for run in made.runs if run.spec["stage"] == "train"][:5]
    api = next(run for run in made.runs if run.spec["name"].startswith("gpt-4o-mini"))
    alone = [Planned(run.folder, {**run.spec, "inputs": {}}) for run in [*trains, api]]
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert graph.run_graph("gpu/cards", alone, made.base.machine.model_copy(update={"group": 1}), cluster.LOCAL) == {}
    saw = [json.loads((run.path / "saw.json").read_text()) for run in alone]
    assert {*saw[:5]} == {"0", "1", "2", "3"}  # four went on only when four had begun
    assert saw[5] == ""


def test_torch_is_asked_elsewhere_so_that_this_process_has_not_started_cuda() -> None:
    ask = "import sys; from sao_lib.launch import cards; print(cards._torch(None), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")
