"""Where snakemake runs the graph: on this machine, or on SLURM through its executor plugin.

Partition, account and other options of a site come from a snakemake profile, whose folder the environment variable
SNAKEMAKE_PROFILE names, e.g. with `default-resources: [slurm_partition=gpu, slurm_account=mine]` in its config.yaml.
SLURM's own SBATCH_* variables reach sbatch too. Repository, .venv, model cache and outputs/ must lie in the same
place on every node, on a file system with file locks (NFS 4; Lustre mounted with flock): without locks, two jobs
asked for the same run both do it.
"""

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

from sao_lib.chain import Planned, models_of
from sao_lib.errors import SaoError
from sao_lib.runs import OUTPUTS
from sao_lib.settings import Machine

LOCAL = "local"
CLUSTERS = (LOCAL, "slurm", "kubernetes")  # the last is refused with the reason
JOBS = 100  # in the cluster's queue at once; how many of them run is the cluster's business
LATENCY = 60  # seconds to wait for a finished run's manifest, which a network file system may show late
TAIL = 500


def check(cluster: str) -> None:
    """Raises SaoError when this machine cannot hand jobs to the cluster."""
    if cluster not in CLUSTERS:
        raise SaoError(f"There is no cluster '{cluster}'; there are: {', '.join(CLUSTERS)}.")
    if cluster == LOCAL:
        return
    if cluster == "kubernetes":
        raise SaoError(
            "CLUSTER=kubernetes does not work yet: snakemake-executor-plugin-kubernetes 0.5.1 turns off the use of a "
            "shared file system and wants object storage, and these runs share a file system."
        )
    if not find_spec(f"snakemake_executor_plugin_{cluster}"):
        raise SaoError(
            f"CLUSTER={cluster} needs snakemake-executor-plugin-{cluster}, which is not installed; run `make setup`."
        )
    if not shutil.which("sbatch"):
        raise SaoError("CLUSTER=slurm needs the command sbatch, which this machine does not have; use a login node.")


def executor(cluster: str) -> list[str]:
    """snakemake's options for the cluster."""
    options = ["--executor", cluster, "--jobs", str(JOBS), "--latency-wait", str(LATENCY)]
    options += ["--quiet", "host", "progress", "reason"]  # what is left says which job is which run, and why one failed
    return [*options, "--slurm-logdir", str(OUTPUTS / "slurm_logs"), *_status()]


def _status() -> list[str]:
    """The plugin asks sacct how jobs are wherever it is installed; squeue where the site keeps no accounting."""
    if shutil.which("sacct"):
        asked = subprocess.run(["sacct", "-n", "-X"], capture_output=True, check=False)
        if asked.returncode == 0:
            return []
    return ["--slurm-status-command", "squeue"]


def resources(run: Planned, machine: Machine) -> dict[str, int]:
    """What a run asks the scheduler for, in the names that the executor plugins know; `runtime` is in minutes.

    A judge by chance, by length or behind an API opens no model here and asks for no GPU.
    """
    gpus = _need(run, machine, "gpus") if _opens_a_model(run) else 0
    asked = {"mem_mb": int(_need(run, machine, "memory_gib") * 1024), "runtime": int(_need(run, machine, "minutes"))}
    return {**asked, "gpu": int(gpus)} if gpus else asked


def threads(run: Planned, machine: Machine, cluster: str) -> int:
    """Cores of a run; one on this machine, where the number of jobs at once is what counts."""
    return 1 if cluster == LOCAL else int(_need(run, machine, "cpus"))


def _need(run: Planned, machine: Machine, what: str) -> float:
    own = getattr(machine.stages.get(run.spec["stage"]), what, None)
    return float(getattr(machine, what) if own is None else own)


def _opens_a_model(run: Planned) -> bool:
    if run.spec["stage"] == "ablate":
        return False
    return "policy" in run.inputs or any(not model.startswith("openai/") for model in models_of(run))


def call(command: list[str], folder: Path, show: bool) -> tuple[int, str]:
    """Run snakemake in `folder`; its exit status and the end of what it said. `show` prints that as it comes."""
    said = ""
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            said = (said + line)[-TAIL:]
            if show and line.strip():
                print(line.rstrip(), flush=True)
    return process.returncode, said.strip()
