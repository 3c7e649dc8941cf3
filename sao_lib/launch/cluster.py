"""Where snakemake runs the graph: on this machine, or on SLURM or Kubernetes through its executor plugins.

Options of a site come from a snakemake profile, whose folder the environment variable SNAKEMAKE_PROFILE names, e.g.
`default-resources: [slurm_partition=gpu, slurm_account=mine]` in its config.yaml, or for Kubernetes `container-image`,
`kubernetes-namespace` and `kubernetes-persistent-volumes`. SLURM's own SBATCH_* variables reach sbatch too.
Repository, environment, model cache and outputs/ must lie in the same place on every node or in every pod as where the
command is given, and outputs/ on a file system with file locks (NFS 4; Lustre mounted with flock): without locks, two
jobs asked for the same run both do it.
"""

import math
import os
import shutil
import subprocess
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from sao_lib.errors import SaoError
from sao_lib.launch.keeper import kept
from sao_lib.plan.chain import Planned, models_of
from sao_lib.plan.groups import Group, knows_one_card
from sao_lib.runs import OUTPUTS
from sao_lib.settings import Machine

LOCAL, SLURM, KUBERNETES = CLUSTERS = ("local", "slurm", "kubernetes")
JOBS = 100  # in the cluster's queue at once; how many of them run is the cluster's business
LATENCY = 60  # seconds to wait for a finished run's manifest, which a network file system may show late
TAIL = 500


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


def executor(cluster: str) -> list[str]:
    """snakemake's options for the cluster."""
    options = ["--executor", cluster, "--jobs", str(JOBS), "--latency-wait", str(LATENCY)]
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

    Its time is the sum of its runs', its cards and memory the largest of theirs. A judge by chance, by length or behind
    an API opens no model here and asks for no GPU.
    """
    gpus = max(_need(run, machine, "gpus") if _opens_a_model(run) else 0 for run in group)
    gib = max(_need(run, machine, "memory_gib") for run in group)
    minutes = sum(_need(run, machine, "minutes") for run in group)
    asked: dict[str, int | str | None] = {"mem_mb": int(gib * 1024), "runtime": int(minutes)}
    if gpus:
        asked["gpu"] = int(gpus)
    if cluster == KUBERNETES:
        # Its megabytes are decimal. GPUs must have limits, which the plugin sets for scale=0; without disk=None that
        # would make one of snakemake's guess at the local disk.
        asked |= {"mem_mb": math.ceil(gib * 2**30 / 10**6), "scale": 0, "disk": None}
        if gpus:
            asked["gpu_manufacturer"] = "nvidia"
    return asked


def threads(run: Planned, machine: Machine, cluster: str) -> int:
    """Cores of a run; one on this machine, where the number of jobs at once is what counts."""
    return 1 if cluster == LOCAL else int(_need(run, machine, "cpus"))


def _need(run: Planned, machine: Machine, what: str) -> float:
    own = getattr(machine.stages.get(run.spec["stage"]), what, None)
    need = float(getattr(machine, what) if own is None else own)
    return min(need, 1.0) if what == "gpus" and knows_one_card(run) else need


def _opens_a_model(run: Planned) -> bool:
    if run.spec["stage"] == "ablate":
        return False
    return "policy" in run.inputs or any(not model.startswith("openai/") for model in models_of(run))


def call(command: list[str], folder: Path, show: bool) -> tuple[int, str]:
    """Run snakemake in `folder`; its exit status and the end of what it said. `show` prints that as it comes.

    What it starts here ends with this process; what a cluster does, snakemake takes back when it is interrupted.
    """
    said = ""
    start = partial(subprocess.Popen, text=True) if show else kept
    with start(command, cwd=folder, stderr=subprocess.PIPE) as process:
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
    return process.returncode, said.strip()
