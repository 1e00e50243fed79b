"""Nothing that infra/ ships opens a cluster to others: tokens, pods, networks and rights; and a real head shows it."""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import kubernetes_validate
import psutil
import pytest

from tests.support.jobs import REPOSITORY
from tests.support.manifests import INFRA, KUBERNETES, documents, found, pods

README = (INFRA / "README.md").read_text()
FILES = [
    *INFRA.rglob("*"),
    *(REPOSITORY / "docs").glob("*.md"),
    REPOSITORY / "README.md",
]  # docs/results tells what was run
TEXTS = {path: path.read_text() for path in FILES if path.is_file()}
MANIFESTS = [manifest for path in sorted(KUBERNETES.glob("*.yaml")) for manifest in documents(path)]
PODS = list(pods())


def test_kubernetes_accepts_every_manifest_and_every_pod_in_it() -> None:
    kinds = set()
    for manifest in MANIFESTS:
        if manifest["apiVersion"].split("/")[0] in ("v1", "apps", "batch", "networking.k8s.io"):
            kubernetes_validate.validate(manifest, "1.34", strict=True)
            kinds.add(manifest["kind"])
    assert kinds == {"ConfigMap", "CronJob", "Deployment", "NetworkPolicy", "Service"}
    for pod in PODS:
        kubernetes_validate.validate(pod, "1.34", strict=True)
    assert len(PODS) == 2 * 4 + 2 + 1 + 1  # two jobs with a submitter, the server, a submitter, the proxy
    misspelt = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"container": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(misspelt, "1.34", strict=True)


def test_namespaces_of_level_restricted_admit_every_pod() -> None:
    """Check the rules of Kubernetes' Pod Security Standards, level "restricted", for containers on Linux."""
    for pod in PODS:
        assert restricted(pod["spec"]) == [], pod["metadata"]["name"]
    for manifest in MANIFESTS:  # the autoscaler is a container that KubeRay adds to the head
        for options in found(manifest, "autoscalerOptions"):
            assert restricted({"securityContext": POD_LEVEL, "containers": [options]}) == []
    opened: dict[str, Any] = {"securityContext": POD_LEVEL, "containers": [{"securityContext": {"privileged": True}}]}
    assert restricted(opened) == ["privileged", "allowPrivilegeEscalation", "capabilities"]
    assert restricted({"hostNetwork": True, "containers": []}) == ["hostNetwork", "runAsNonRoot", "seccompProfile"]


POD_LEVEL = {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def restricted(spec: dict[str, Any]) -> list[str]:
    """Name the rules that a pod's specification breaks."""
    pod = spec.get("securityContext", {})
    broken = [name for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    broken += ["volumes" for volume in spec.get("volumes", []) if not set(volume) - {"name"} <= VOLUMES]
    broken += ["runAsNonRoot"] * (pod.get("runAsNonRoot") is not True or pod.get("runAsUser") == 0)
    broken += ["seccompProfile"] * (pod.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"))
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        own = container.get("securityContext", {})
        broken += ["privileged"] * bool(own.get("privileged"))
        broken += ["allowPrivilegeEscalation"] * (own.get("allowPrivilegeEscalation") is not False)
        capabilities = own.get("capabilities", {})
        only = capabilities.get("drop") == ["ALL"] and set(capabilities.get("add", ())) <= {"NET_BIND_SERVICE"}
        broken += ["capabilities"] * (not only)
        broken += ["hostPort" for port in container.get("ports", []) if "hostPort" in port]
    return broken


def test_no_shipped_file_opens_ray() -> None:
    for manifest in MANIFESTS:
        if manifest["kind"].startswith("Ray"):
            assert next(found(manifest, "authOptions")) == {"mode": "token", "secretName": "offramp-auth"}
    for path, text in TEXTS.items():
        assert not re.search(r"RAY_AUTH_MODE\W+disabled", text), path
        for line in text.replace("\\\n", " ").replace("''", "").splitlines():
            if re.search(r"(?<![`\w])ray start --", line):
                assert "RAY_AUTH_MODE=token ray start" in line, f"{path}: {line}"
    policies = [manifest for manifest in MANIFESTS if manifest["kind"] == "NetworkPolicy"]
    assert policies
    assert all(rule["from"] for policy in policies for rule in policy["spec"]["ingress"])  # an empty one is everybody
    for pod in PODS:
        if "ray-head" not in {
            container["name"] for container in pod["spec"]["containers"]
        }:  # whose autoscaler needs it
            assert pod["spec"]["automountServiceAccountToken"] is False


@pytest.mark.e2e
def test_a_head_that_is_started_as_printed_refuses_a_stranger_and_lets_its_owner_in(tmp_path: Path) -> None:
    lines = next(block for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) if "ray start --head" in block)
    generate, start = (line.split("#")[0] for line in lines.splitlines()[:2])
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder, socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        taken.close()
        homes = {name: Path(folder, name) for name in ("owner", "stranger")}
        for home in homes.values():
            home.mkdir()
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        clean |= {"PATH": path, "RAY_TMPDIR": folder, "RAY_ENABLE_AUTOSCALER_V2": "0"}
        shell = partial(subprocess.run, shell=True, capture_output=True, text=True, check=False, timeout=120)
        own = clean | {"HOME": str(homes["owner"])}
        start = f"{start} --port {port} --num-cpus 1 --include-dashboard false --disable-usage-stats"
        started = shell(f"{generate} && {start.replace('--metrics-export-port 8080', '')}", env=own)
        try:
            assert started.returncode == 0, started.stderr
            join = (
                f'{sys.executable} -c \'import ray; ray.init("127.0.0.1:{port}", log_to_driver=False);'
                " print(ray.get(ray.remote(lambda: 6 * 7).remote()))'"
            )
            owner = shell(join, env=own | {"RAY_AUTH_MODE": "token"})
            strangers = [
                shell(
                    join, env=clean | {"HOME": str(homes["stranger"]), "RAY_gcs_server_port_wait_time_s": "1"} | theirs
                )
                for theirs in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64})
            ]
        finally:
            for process in psutil.process_iter(["cmdline"]):
                if folder in " ".join(process.info["cmdline"] or []):
                    process.kill()
        assert owner.stdout.split() == ["42"], owner.stderr
        for stranger in strangers:
            assert stranger.returncode != 0
            assert "42" not in stranger.stdout


def test_the_heads_policy_lets_it_start_workers_and_end_its_own_and_no_more() -> None:
    policy = json.loads((INFRA / "iam-policy-head.json").read_text())
    by_action = {action: statement for statement in policy["Statement"] for action in _listed(statement["Action"])}
    assert {action for action in by_action if not action.startswith("ec2:Describe")} == {
        "ec2:RunInstances",
        "ec2:CreateTags",
        "ec2:TerminateInstances",
        "ec2:StopInstances",
        "iam:PassRole",
    }
    assert all(action.startswith("ec2:Describe") for action, s in by_action.items() if s["Resource"] == "*")
    cluster = documents(INFRA / "cluster.yaml")[0]
    tag = by_action["ec2:TerminateInstances"]["Condition"]["StringEquals"]["aws:ResourceTag/ray-cluster-name"]
    assert tag == cluster["cluster_name"]
    roles = {
        name: kind["node_config"]["IamInstanceProfile"]["Name"]
        for name, kind in cluster["available_node_types"].items()
    }
    assert roles == {"head": "offramp-head", "cpu": "offramp-node", "gpu": "offramp-node"}
    assert by_action["iam:PassRole"]["Resource"].endswith(":role/offramp-node")
    assert cluster["provider"]["region"] in by_action["ec2:RunInstances"]["Resource"][0]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
