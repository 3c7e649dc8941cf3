"""snakemake with its Kubernetes plugin told that pods share a volume; run as `python -m sao_lib.launch.kubernetes`.

snakemake-executor-plugin-kubernetes 0.5.1 holds that pods share no files, so snakemake ships the Snakefile, inputs and
outputs through object storage and installs packages in every pod. Here every pod has the repository and environment of
its image and the volume with outputs/. The rest is what pods here need and the plugin has no option for.

The plugin makes and deletes jobs and one secret. In a pod, its service account needs the right to do so, e.g. by

    kubectl create role sao --verb=create,get,list,delete --resource=secrets,pods,pods/log,jobs.batch,jobs.batch/status
    kubectl create rolebinding sao --role=sao --serviceaccount=default:default
"""

import os
import sys
from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import snakemake_executor_plugin_kubernetes as plugin
from kubernetes import client
from snakemake.cli import main
from snakemake.common import get_container_image
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry
from urllib3.exceptions import MaxRetryError

from sao_lib.launch import cluster
from sao_lib.runs import OUTPUTS

# What pods get from the environment of the command, through a Kubernetes secret that is deleted with its end.
PASSED = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HF_TOKEN", "HF_HOME", "HF_HUB_OFFLINE", "SAO_OUTPUTS", "SAO_MODELS")
UNSCHEDULED = "it found no node"
ExecutorSettings = plugin.ExecutorSettings
common_settings = replace(
    plugin.common_settings,
    implies_no_shared_fs=False,
    job_deploy_sources=False,
    auto_deploy_default_storage_provider=False,
)


class Pods(client.CoreV1Api):
    """The plugin asks for the log before a restart; these pods never restart, and the refusal would end snakemake."""

    def read_namespaced_pod_log(self, name: str, namespace: str, **asked: Any) -> str:
        try:
            return str(super().read_namespaced_pod_log(name, namespace, **{**asked, "previous": False}))
        except client.ApiException as refused:  # evicted, or its node is gone
            return f"There is no log: {refused.body}"


class Jobs(client.BatchV1Api):
    """Pods end after the minutes that their run states, and have memory at /dev/shm, through which GPUs exchange."""

    minutes = 0

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def create_namespaced_job(self, namespace: str, body: Any, **asked: Any) -> Any:
        self.names.append(body.metadata.name)
        pod = body.spec.template.spec
        pod.active_deadline_seconds = 60 * self.minutes
        pod.volumes.append(client.V1Volume(name="shm", empty_dir=client.V1EmptyDirVolumeSource(medium="Memory")))
        pod.containers[0].volume_mounts.append(client.V1VolumeMount(name="shm", mount_path="/dev/shm"))
        return super().create_namespaced_job(namespace, body, **asked)


class Executor(plugin.Executor):
    """The plugin's own, with the two interfaces above."""

    def __post_init__(self) -> None:
        if self.workflow.remote_execution_settings.container_image == get_container_image():
            raise WorkflowError("Pods need the image of this suite; name it as container-image in snakemake's profile.")
        volumes = self.workflow.executor_settings.persistent_volumes
        if not any(OUTPUTS.is_relative_to(volume.path) for volume in volumes):
            raise WorkflowError(
                f"{OUTPUTS} lies on no volume that pods share; name the claim and its place in snakemake's profile, "
                "e.g. kubernetes-persistent-volumes: [sao:/data], and a folder in it as SAO_OUTPUTS."
            )
        try:
            super().__post_init__()
        except (client.ApiException, MaxRetryError) as refused:
            why = getattr(refused, "body", None) or refused.reason
            raise WorkflowError(f"Kubernetes did not take the secret with what pods get from here: {why}") from None
        self.kubeapi, self.batchapi = Pods(), Jobs()

    def envvars(self) -> dict[str, str]:
        return {**super().envvars(), **{name: os.environ[name] for name in PASSED if os.environ.get(name)}}

    def run_job(self, job: Any) -> None:
        self.batchapi.minutes = job.resources.runtime
        super().run_job(job)

    async def check_active_jobs(self, active_jobs: list[SubmittedJobInfo]) -> AsyncGenerator[SubmittedJobInfo, None]:
        """As the plugin's; a pod that finds no node for the minutes that the profile states ends with the reason."""
        async for info in super().check_active_jobs(active_jobs):
            waited = self._unscheduled(info)
            if waited is None:
                yield info
                continue
            self.report_job_error(info, msg=waited)
            self._kubernetes_retry(partial(self.safe_delete_job, info.external_jobid))

    def _pod(self, info: SubmittedJobInfo) -> Any:
        label = f"job-name={info.external_jobid}"
        pods = self._kubernetes_retry(partial(self.kubeapi.list_namespaced_pod, self.namespace, label_selector=label))
        return pods.items[0] if pods.items else None

    def _unscheduled(self, info: SubmittedJobInfo) -> str | None:
        """Why a pod has found no node for too long; None where it has one or may still wait."""
        pod, minutes = self._pod(info), int(info.job.resources.get("pending_minutes") or 0)
        conditions = (pod.status.conditions or []) if pod else []
        why = next((c.message or "" for c in conditions if c.type == "PodScheduled" and c.status == "False"), None)
        if why is None or datetime.now(UTC) - pod.metadata.creation_timestamp < timedelta(minutes=minutes):
            return None
        return f"{UNSCHEDULED} in {minutes} minutes (machine.pending_minutes): {why}"

    def report_job_error(self, job_info: SubmittedJobInfo, msg: str | None = None, **said: Any) -> None:
        """With the reasons of the pod and its container, e.g. Evicted, DeadlineExceeded or OOMKilled."""
        why = msg if msg and msg.startswith(UNSCHEDULED) else _ended(self._pod(job_info)) or msg
        cluster.note(job_info.job, why, again=not (why or "").startswith(UNSCHEDULED))
        super().report_job_error(job_info, msg=msg or why, **said)

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """All that were made: snakemake's own list is empty while it asks how they are, and lacks one being made."""
        for name in self.batchapi.names:
            self._kubernetes_retry(partial(self.safe_delete_job, name))


def _ended(pod: Any) -> str:
    """The reasons that Kubernetes gives for a pod's end and for its container's."""
    if pod is None:
        return "its pod is gone, perhaps with its node"
    states = [container.state.terminated for container in pod.status.container_statuses or []]
    found = [pod.status.reason, pod.status.message, *(state.reason for state in states if state)]
    codes = [f"exit status {state.exit_code}" for state in states if state and state.exit_code]
    return ", ".join(filter(None, [*found, *codes]))


if __name__ == "__main__":
    ExecutorPluginRegistry().register_plugin(plugin.__name__, sys.modules[__name__])
    main()
