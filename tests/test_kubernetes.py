"""Kubernetes: a real graph through snakemake and its real plugin, against a fake of the API that the plugin calls."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import interrupted
import pytest
from fake_kubernetes import FakeKubernetes
from snakemake_interface_common.exceptions import WorkflowError

from sao_lib.launch import cluster, kubernetes
from sao_lib.plan import planning as plan
from sao_lib.runs import OUTPUTS
from sao_lib.settings import ROOT

SMALLEST = ["synthesize.n=4", "synthesize.pairs=2", "synthesize.max_response_tokens=16", "judge.source=length",
            "judge.audit_questions=1", "engine.kind=transformers"]  # fmt: skip  # which starts sooner than vLLM
TOKEN = "hf_a-token-of-the-tests"
PROFILE = """\
container-image: registry.example/sao-suite
kubernetes-namespace: sao
kubernetes-persistent-volumes: [sao-outputs:{volume}]
seconds-between-status-checks: 1
"""
KUBECONFIG = """\
{{apiVersion: v1, kind: Config, current-context: fake, contexts: [{{name: fake, context: {{cluster: fake, user: me}}}}],
  clusters: [{{name: fake, cluster: {{server: "{url}"}}}}], users: [{{name: me, user: {{}}}}]}}
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[FakeKubernetes]:
    yield from serve(tmp_path)


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeKubernetes]:
    yield from serve(tmp_path_factory.mktemp("kubernetes"))


def serve(folder: Path) -> Iterator[FakeKubernetes]:
    """A fake cluster with a volume, a kubeconfig and a snakemake profile in `folder`."""
    server = FakeKubernetes(folder / "node")
    (folder / "volume").mkdir()
    (folder / "profile").mkdir()
    (folder / "profile" / "config.yaml").write_text(PROFILE.format(volume=folder / "volume"))
    (folder / "kubeconfig").write_text(KUBECONFIG.format(url=server.url))
    yield server
    for pod in server.pods.values():
        pod.end()
    server.shutdown()


def start(site: FakeKubernetes, *given: str, **environment: str) -> subprocess.Popen[str]:
    folder = site.folder.parent
    named = {"KUBECONFIG": f"{folder}/kubeconfig", "SNAKEMAKE_PROFILE": f"{folder}/profile"}
    named |= {"SAO_OUTPUTS": f"{folder}/volume/outputs", "HF_TOKEN": TOKEN, "OPENAI_API_KEY": "", "HF_HUB_OFFLINE": "1"}
    words = ["reproduce", "table13", "--cluster", "kubernetes", "--set", *SMALLEST, *given]
    return interrupted.start(words, {**named, **environment})


def reproduce(site: FakeKubernetes, *given: str, **environment: str) -> SimpleNamespace:
    process = start(site, *given, **environment)
    out, err = process.communicate()
    return SimpleNamespace(returncode=process.returncode, stdout=out, stderr=err)


@pytest.fixture(scope="module")
def said(used: FakeKubernetes) -> str:
    """What the command printed while pods made the smallest real table; the model states two GPUs, which it ignores."""
    done = reproduce(used, "machine.gpus=2")
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-4000:]
    return done.stdout


def containers(site: FakeKubernetes) -> list[dict[str, Any]]:
    return [job["spec"]["template"]["spec"]["containers"][0] for job in site.made.values()]


def test_three_pods_make_the_table(used: FakeKubernetes, said: str) -> None:
    assert "3 of 3 runs to do, in 3 group(s), handed to kubernetes" in said
    assert "| Ranking |" in said
    assert len(used.made) == 3
    assert len(re.findall("Job snakejob-.* succeeded", said)) == 3
    assert {container["image"] for container in containers(used)} == {"registry.example/sao-suite"}


def test_pods_ask_for_what_their_runs_state(used: FakeKubernetes, said: str) -> None:
    made = plan.make("cpu", "table13", [*SMALLEST, "machine.gpus=2"])
    asked = [container["resources"] for container in containers(used)]
    for what, run in zip(asked, made.runs, strict=True):
        stated = cluster.resources([run], made.base.machine)["mem_mb"] * 2**20
        assert stated <= int(what["limits"]["memory"].removesuffix("M")) * 10**6 < stated + 10**6
        assert what["limits"]["memory"] == what["requests"]["memory"]
        assert "ephemeral-storage" not in what["limits"]
    assert [what["limits"].get("nvidia.com/gpu") for what in asked] == ["2", None, None]  # by length, a table: no model
    deadlines = [job["spec"]["template"]["spec"]["activeDeadlineSeconds"] for job in used.made.values()]
    assert deadlines == [60 * minutes for minutes in (60, 60, 15)]


def test_pods_need_no_file_but_the_images_and_the_volumes(used: FakeKubernetes, said: str) -> None:
    volume = used.folder.parent / "volume"
    for job, container in zip(used.made.values(), containers(used), strict=True):
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounted == {"workdir": "/workdir", "sao-outputs": str(volume), "shm": "/dev/shm"}
        claims = [v.get("persistentVolumeClaim") for v in job["spec"]["template"]["spec"]["volumes"]]
        assert {"claimName": "sao-outputs"} in claims
        paths = [Path(word) for word in shlex.split(container["args"][1]) if word.startswith("/")]
        assert len(paths) > 3
        assert all(any(path.is_relative_to(root) for root in (ROOT, sys.prefix, volume)) for path in paths), paths
        assert not re.search("pip install|deploy-sources|default-storage", container["args"][1])


def test_keys_reach_pods_by_a_secret_that_is_deleted(used: FakeKubernetes, said: str) -> None:
    for container in containers(used):
        assert {variable["name"] for variable in container["env"]} >= {"HF_TOKEN", "HF_HUB_OFFLINE", "SAO_OUTPUTS"}
        assert TOKEN not in json.dumps(container)
    assert not used.secrets
    assert not used.pods
    files = [path for path in used.folder.parent.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]


def test_a_run_that_fails_in_its_pod_is_one_sentence(site: FakeKubernetes) -> None:
    done = reproduce(site, SAO_MODELS="/dev/null/models")
    assert done.returncode == 1
    assert re.search(r"^Error: 1 failure\(s\); everything finished is kept\.\nsynthesize/.* failed in .*", done.stderr)
    assert len(site.made) == 1
    assert "Kubernetes request failed" not in done.stdout
    assert "/dev/null/models" in next((site.folder.parent / "volume").rglob("kubernetes-logs/*.log")).read_text()


def test_a_pod_that_is_evicted_every_time_is_one_sentence(site: FakeKubernetes) -> None:
    site.evicts = 99
    done = reproduce(site)
    assert done.returncode == 1
    assert re.search(
        r"^Error: 1 failure\(s\); .*\nsynthesize/.* ended with its job: Evicted, The node was low", done.stderr
    )
    assert "exit status 137. What it wrote is kept: the same command goes on from there." in done.stderr
    assert len(site.made) == 1 + cluster.RETRIES
    assert not site.secrets
    assert not site.pods


def test_a_pod_that_is_evicted_once_is_tried_again_and_the_table_made(site: FakeKubernetes) -> None:
    site.evicts = 1
    done = reproduce(site)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-4000:]
    assert len(site.made) == 4
    assert "| Ranking |" in done.stdout


def test_a_pod_that_no_node_has_room_for_ends_with_the_reason(site: FakeKubernetes) -> None:
    site.full = True
    done = reproduce(site, "machine.pending_minutes=5")
    assert done.returncode == 1
    assert "it found no node in 5 minutes (machine.pending_minutes): 0/3 nodes are available" in done.stderr
    assert len(site.made) == 1  # waiting again would find no node either
    assert not site.pods


@pytest.mark.parametrize("seconds", [0, 5])
def test_an_interrupted_command_takes_its_pods_and_its_secret_back(site: FakeKubernetes, seconds: int) -> None:
    """Also while snakemake asks how they are: it forgets them meanwhile."""
    process = start(site)
    deadline = time.monotonic() + 120
    while not any(pod.log.stat().st_size for pod in [*site.pods.values()]) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert site.secrets
    if seconds:
        site.seconds = seconds
        site.asked.clear()
        assert site.asked.wait(60)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.communicate()[1] == "Stopped; run the same command to continue.\n"
    assert process.returncode == 130
    assert len(site.made) == 1
    assert not site.secrets
    assert not site.pods


def test_a_cluster_that_cannot_be_reached_is_said(site: FakeKubernetes) -> None:
    site.shutdown()
    site.server_close()
    done = reproduce(site)
    assert done.returncode == 1
    assert "Kubernetes did not take the secret" in done.stdout


@pytest.mark.parametrize(
    ("image", "path", "said"),
    [
        (kubernetes.get_container_image(), OUTPUTS, "container-image"),
        ("sao-suite", OUTPUTS / "a", "lies on no volume"),
    ],
)
def test_a_profile_without_image_or_volume_is_one_sentence(image: str, path: Path, said: str) -> None:
    workflow = SimpleNamespace(
        remote_execution_settings=SimpleNamespace(container_image=image),
        executor_settings=SimpleNamespace(persistent_volumes=[SimpleNamespace(path=path)]),
    )
    with pytest.raises(WorkflowError, match=said):
        kubernetes.Executor.__post_init__(SimpleNamespace(workflow=workflow))  # type: ignore[arg-type]
