"""snakemake with its SLURM plugin, every job of which is taken back; `python -m sao_lib.launch.slurm` is snakemake.

An interrupted snakemake cancels the jobs in its list of active ones, and that list is empty while it asks how they
are (snakemake-interface-executor-plugins 9.4, `_wait_for_jobs`). All jobs of a command have one name to find them by.
"""

import sys
from typing import Any

import snakemake_executor_plugin_slurm as plugin
from snakemake.cli import main
from snakemake_executor_plugin_slurm import ExecutorSettings, common_settings
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry

from sao_lib.launch import cluster

__all__ = ["Executor", "ExecutorSettings", "common_settings"]


class Executor(plugin.Executor):
    """The plugin's own, except for what an interruption cancels and what is kept of a job that failed."""

    def report_job_error(self, job_info: SubmittedJobInfo, msg: str | None = None, **said: Any) -> None:
        """A job that a person cancelled is not tried again."""
        cluster.note(job_info.job, msg, again="CANCELLED" not in (msg or ""))
        super().report_job_error(job_info, msg=msg, **said)

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        named = SubmittedJobInfo(job=None, external_jobid=f"--name={self.run_uuid}")
        super().cancel_jobs([named])


if __name__ == "__main__":
    ExecutorPluginRegistry().register_plugin(plugin.__name__, sys.modules[__name__])
    main()
