"""Jobs that end without a word of their runs': what the scheduler says is kept, and who is tried again."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo

from sao_lib.errors import Killed, SaoError
from sao_lib.launch import cluster, graph, slurm
from sao_lib.plan import chain
from sao_lib.plan import planning as plan

TIMEOUT = "SLURM-job '12' failed, SLURM status is: 'TIMEOUT'. Reason: Unknown."


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> plan.Plan:
    """The smallest plan, its specs written into a temporary outputs/."""
    for module in (chain, graph, cluster):
        monkeypatch.setattr(module, "OUTPUTS", tmp_path)
    found = plan.make("cpu", "table13")
    plan.write_specs(found)
    return found


def job(mark: Path, *runs: plan.Planned) -> Any:
    """What the executor knows of a job: its output, its parameters, and its rule's number of retries."""
    params = SimpleNamespace(runs=[str(run.path) for run in runs])
    return SimpleNamespace(output=[str(mark)], params=params, rule=SimpleNamespace(restart_times=cluster.RETRIES))


def done(run: plan.Planned) -> None:
    (run.path / "run.json").write_text("{}")


def test_no_group_of_the_papers_asks_for_more_than_a_day() -> None:
    made = plan.make("paper", "table6")
    alike = [run for run in made.runs if run.spec["stage"] == "evaluate"]
    for group in (alike[:1], alike[:8]):
        assert cluster.resources(group, made.base.machine)["runtime"] == 1440
    assert cluster.resources([made.table], made.base.machine)["runtime"] == 30


def test_a_job_that_ran_out_of_time_is_tried_again_and_then_told(made: plan.Plan, tmp_path: Path) -> None:
    first, second, table = made.runs
    given, mark = job(tmp_path / "1.done", first), f"{tmp_path}/1.done"
    cluster.note(given, TIMEOUT)
    assert given.rule.restart_times == cluster.RETRIES
    assert "--retries" in cluster.executor("kubernetes")
    found = graph._lost([{"mark": mark}, {"mark": f"{tmp_path}/2.done"}], [[first], [second]])
    assert found.keys() == {first.folder}  # the second has not been handed in: it waits for the first
    assert "ended with its job: SLURM-job '12' failed, SLURM status is: 'TIMEOUT'" in found[first.folder]
    assert "raise machine.stages.synthesize.minutes; the same command goes on" in found[first.folder]


def test_a_run_with_a_reason_of_its_own_is_not_tried_again(made: plan.Plan, tmp_path: Path) -> None:
    first = made.runs[0]
    (first.path / cluster.FAILED).write_text("The model is gone.\n")
    given = job(tmp_path / "1.done", first)
    cluster.note(given, "SLURM status is: 'FAILED'")
    assert given.rule.restart_times == 0
    assert graph._lost([{"mark": f"{tmp_path}/1.done"}], [[first]]) == {}


def test_of_a_group_the_runs_that_are_left_count(made: plan.Plan, tmp_path: Path) -> None:
    first, second, _ = made.runs
    done(first)
    given = job(tmp_path / "1.done", first, second)
    cluster.note(given, "'OUT_OF_MEMORY'")
    assert given.rule.restart_times == cluster.RETRIES
    found = graph._lost([{"mark": f"{tmp_path}/1.done"}], [[first, second]])
    assert found.keys() == {second.folder}
    assert "machine.stages.judge.memory_gib" in found[second.folder]


@pytest.mark.parametrize(
    ("said", "again"), [(TIMEOUT, cluster.RETRIES), ("SLURM status is: 'CANCELLED'", 0), (None, 2)]
)
def test_the_slurm_executor_notes_what_it_reports(
    made: plan.Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None, again: int
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(slurm.plugin.Executor, "report_job_error", lambda self, info, msg=None, **_: told.append(msg))
    executor = slurm.Executor.__new__(slurm.Executor)
    given = job(tmp_path / "1.done", made.runs[0])
    executor.report_job_error(SubmittedJobInfo(given), msg=said)
    assert told == [said]
    assert given.rule.restart_times == again
    assert str(cluster.noted(f"{tmp_path}/1.done")) in (said or "the scheduler gave no reason")


@pytest.fixture
def no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing:
        def close(self, interrupted: bool) -> None: ...

    monkeypatch.setattr("sao_lib.launch.kernel.Kernel", Nothing)


def group(made: plan.Plan, tmp_path: Path, pool: list[str] | None) -> list[Any]:
    (tmp_path / "plan.json").write_text(json.dumps({"pool": pool, "of": []}))
    return [[made.runs[0].path], tmp_path / "plan.json", 0]


def test_a_killed_process_leaves_no_reason_on_a_cluster_and_one_here(
    made: plan.Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_kernel: None
) -> None:
    def killed(*_: Any) -> None:
        raise Killed("it was killed")

    monkeypatch.setattr(graph, "execute", killed)
    error = made.runs[0].path / cluster.FAILED
    for pool, left in ((None, False), ([], True)):
        with pytest.raises(SaoError, match="it was killed"):
            graph.do_group(*group(made, tmp_path, pool))
        assert error.is_file() is left


def test_what_failed_in_this_command_is_not_done_again_when_its_job_is_tried_again(
    made: plan.Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_kernel: None
) -> None:
    tries: list[Any] = []

    def fails(*given: Any) -> None:
        tries.append(given)
        raise SaoError("no")

    monkeypatch.setattr(graph, "execute", fails)
    given = group(made, tmp_path, None)
    for _ in range(2):
        with pytest.raises(SaoError):
            graph.do_group(*given)
    assert len(tries) == 1
    given = group(made, tmp_path, None)  # another command
    with pytest.raises(SaoError):
        graph.do_group(*given)
    assert len(tries) == 2
