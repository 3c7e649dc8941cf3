"""Where snakemake runs the graph: on this machine, or on SLURM or Kubernetes through its executor plugins.

Options of a site come from a snakemake profile, whose folder the environment variable SNAKEMAKE_PROFILE names, e.g.
`default-resources: [slurm_partition=gpu, slurm_account=mine]` in its config.yaml, or for Kubernetes `container-image`,
`kubernetes-namespace` and `kubernetes-persistent-volumes`. SLURM's own SBATCH_* variables reach sbatch too.
Repository, environment, model cache and outputs/ must lie in the same place on every node or in every pod as where the
command is given, and outputs/ on a file system with file locks (NFS 4; Lustre mounted with flock): without locks, two
jobs asked for the same run both do it.
"""

import json
import math
import os
import re
import shutil
import subprocess
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sao_lib.errors import SaoError
from sao_lib.launch.keeper import kept
from sao_lib.plan.chain import Planned
from sao_lib.plan.groups import Group, knows_one_card, on_a_card
from sao_lib.runs import MANIFEST, OUTPUTS
from sao_lib.settings import Machine

LOCAL, SLURM, KUBERNETES = CLUSTERS = ("local", "slurm", "kubernetes")
JOBS = 100  # in the cluster's queue at once; how many of them run is the cluster's business
FAILED, NOTE = "error.txt", ".why"  # a run's own reason in its folder; the scheduler's beside its group's mark
LATENCY = 60  # seconds to wait for a finished run's manifest, which a network file system may show late
DAY = 1440  # minutes: what many partitions give at most
RETRIES = 2  # of a job that ended without a reason of its runs' own: by its time, its node, its memory
TAIL = 500
# What a scheduler's word asks for: SLURM's states, and the reasons of Kubernetes' pods and containers.
SENTENCE = re.compile(r"(?<![A-Za-z])Error: (.+)")  # as a run's process says why it ended
MORE = {"TIMEOUT": "minutes", "DeadlineExceeded": "minutes", "OUT_OF_MEMORY": "memory_gib", "OOMKilled": "memory_gib"}


def check(cluster: str) -> None:
    """Raises SaoError when this machine cannot hand jobs to the cluster."""
    if cluster not in CLUSTERS:
        raise SaoError(f"There is no cluster '{cluster}'; there are: {', '.join(CLUSTERS)}.")
    if cluster == LOCAL:
        return
    if not find_spec(f"snakemake_executor_plugin_{cluster}"):
        raise SaoError(
            f"CLUSTER={cluster} needs snakemake-executor-plugin-{cluster}, which is not installed; run `make setup`."
        )
    if cluster == SLURM and not shutil.which("sbatch"):
        raise SaoError("CLUSTER=slurm needs the command sbatch, which this machine does not have; use a login node.")
    if cluster == KUBERNETES and not _kubernetes_is_known():
        raise SaoError(
            "CLUSTER=kubernetes finds no cluster; give the command in one of its pods, or name a kubeconfig file in "
            "KUBECONFIG."
        )


def _kubernetes_is_known() -> bool:
    files = os.environ.get("KUBECONFIG", "~/.kube/config").split(os.pathsep)
    return "KUBERNETES_SERVICE_HOST" in os.environ or any(Path(file).expanduser().is_file() for file in files)


def program(cluster: str) -> str:
    """The module that is snakemake: its own, or the one that corrects its plugin for the cluster."""
    return "snakemake" if cluster == LOCAL else f"sao_lib.launch.{cluster}"


def here(jobs: int, cards: int) -> list[str]:
    """snakemake's options for this machine: so many jobs at once, among them so many cards."""
    return ["--cores", str(jobs), "--resources", f"gpu={cards}", "--quiet", "all"]


def executor(cluster: str) -> list[str]:
    """snakemake's options for the cluster."""
    options = ["--executor", cluster, "--jobs", str(JOBS), "--latency-wait", str(LATENCY)]
    options += ["--retries", str(RETRIES)]
    options += ["--quiet", "host", "progress", "reason"]  # what is left says which job is which run, and why one failed
    if cluster == SLURM:
        return [*options, "--slurm-logdir", str(OUTPUTS / "slurm_logs"), *_status()]
    # snakemake's own folder is looked for in pods too, which share outputs/ only, and no home with a source cache.
    shared = ["persistence", "input-output", "software-deployment", "sources", "storage-local-copies"]
    return [*options, "--directory", str(OUTPUTS), "--shared-fs-usage", *shared]


def _status() -> list[str]:
    """The plugin asks sacct how jobs are wherever it is installed; squeue where the site keeps no accounting."""
    if shutil.which("sacct"):
        asked = subprocess.run(["sacct", "-n", "-X"], capture_output=True, check=False)
        if asked.returncode == 0:
            return []
    return ["--slurm-status-command", "squeue"]


def resources(group: Group, machine: Machine, cluster: str = LOCAL) -> dict[str, int | str | None]:
    """What a group asks the scheduler for, in the names that the executor plugins know; `runtime` is in minutes.

    Its time is the sum of its runs', a day at most unless one states more; its memory and cards the largest of theirs.
    """
    gpus = cards_of(group, machine)
    gib = max(_need(run, machine, "memory_gib") for run in group)
    each = [_need(run, machine, "minutes") for run in group]
    minutes = min(sum(each), max(DAY, *each))
    asked: dict[str, int | str | None] = {"mem_mb": int(gib * 1024), "runtime": int(minutes)}
    if gpus:
        asked["gpu"] = gpus
    if cluster == KUBERNETES:
        # Its megabytes are decimal. GPUs must have limits, which the plugin sets for scale=0; without disk=None that
        # would make one of snakemake's guess at the local disk.
        asked |= {"mem_mb": math.ceil(gib * 2**30 / 10**6), "scale": 0, "disk": None}
        asked["pending_minutes"] = machine.pending_minutes
        if gpus:
            asked["gpu_manufacturer"] = "nvidia"
    return asked


def cards_of(group: Group, machine: Machine) -> int:
    """The cards that a group holds: as many as the run of it that needs most.

    A judge by chance, by length, by embeddings or behind an API opens no model on a card and needs none.
    """
    return int(max(_need(run, machine, "gpus") if on_a_card(run) else 0 for run in group))


def threads(run: Planned, machine: Machine, cluster: str) -> int:
    """Cores of a run; one on this machine, where the number of jobs at once is what counts."""
    return 1 if cluster == LOCAL else int(_need(run, machine, "cpus"))


def _need(run: Planned, machine: Machine, what: str) -> float:
    own = getattr(machine.stages.get(run.spec["stage"]), what, None)
    need = float(getattr(machine, what) if own is None else own)
    return min(need, 1.0) if what == "gpus" and knows_one_card(run) else need


def note(job: Any, reason: str | None, again: bool = True) -> None:
    """In snakemake: leave what the scheduler says of a job that failed beside its mark, where the command reads it.

    It is not tried again where its runs have left a reason of their own or `again` is false.
    """
    lost = [run for run in job.params.runs if left_without_reason(Path(run))]
    if not lost or not again:
        job.rule.restart_times = 0
    said = " ".join((reason or "").split()) or "the scheduler gave no reason"
    Path(f"{job.output[0]}{NOTE}").write_text(f"{said}\n")


def noted(mark: str) -> str | None:
    """What was noted of the job that should have made `mark`."""
    file = Path(f"{mark}{NOTE}")
    return file.read_text().strip() if file.is_file() else None


def left_without_reason(folder: Path) -> bool:
    """Whether a run has not finished, though all that it reads has, and has not said why."""
    if (folder / MANIFEST).is_file() or (folder / FAILED).is_file():
        return False
    inputs = json.loads((folder / "spec.yaml").read_text())["inputs"].values()
    return all((OUTPUTS / other / MANIFEST).is_file() for other in inputs)


def told(run: Planned, said: str) -> str:
    """The sentence about a run whose job ended as the scheduler `said`."""
    more = next((f"raise machine.stages.{run.spec['stage']}.{key}; " for word, key in MORE.items() if word in said), "")
    return (
        f"{run.spec['stage']}/{run.spec['name']} ended with its job: {said.rstrip('.')}. What it wrote is kept: "
        f"{more}the same command goes on from there."
    )


def call(command: list[str], folder: Path, show: bool) -> tuple[int, str]:
    """Run snakemake in `folder`; its exit status and why, else the end of what it said. `show` prints that as it comes.

    What it starts here ends with this process; what a cluster does, snakemake takes back when it is interrupted.
    """
    said, began = "", time.time()
    start = partial(subprocess.Popen, text=True) if show else kept
    with start(command, cwd=folder, stderr=subprocess.PIPE, env=_environment()) as process:
        assert process.stderr
        try:
            for line in process.stderr:
                said = (said + line)[-TAIL:]
                if show and line.strip():
                    print(line.rstrip(), flush=True)
        except KeyboardInterrupt:
            if show:  # snakemake was interrupted too and takes its jobs back, while someone listens
                print(process.stderr.read(), flush=True)
            raise
    sentences = SENTENCE.findall(said)  # ours, behind what libraries wrote on their way down
    reason = (
        (sentences[-1] if sentences else said.strip())
        or _logged(folder, began)
        or f"it gave no reason, exit status {process.returncode}."
    )
    return process.returncode, reason


def _logged(folder: Path, since: float) -> str:
    """The end of what snakemake noted in its own log: quiet, it says nothing of what stops it before the first job."""
    logs = [log for log in (folder / ".snakemake" / "log").glob("*.log") if log.stat().st_mtime >= since]
    newest = max(logs, key=lambda log: log.stat().st_mtime, default=None)
    return newest.read_text(errors="replace")[-TAIL:].strip() if newest else ""


def _environment() -> dict[str, str]:
    """This process's; with a home under outputs/ where there is none to write to, as for a container's nameless user.

    Snakemake, Jupyter and vLLM keep caches and sockets there. Models that were fetched before stay where they are.
    """
    home = Path(os.path.expanduser("~"))
    if os.access(home, os.W_OK):
        return dict(os.environ)
    own = OUTPUTS / ".home"
    own.mkdir(parents=True, exist_ok=True)
    fetched = home / ".cache" / "huggingface"
    kept = {"HF_HOME": str(fetched)} if os.access(fetched, os.R_OK) else {}
    return {**kept, **os.environ, "HOME": str(own)}
