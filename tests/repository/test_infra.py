"""What infra/ says is what the repository and its schemas have: commands, paths, options, metric names, fields."""

import functools
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from ray.data._internal.execution.interfaces.op_runtime_metrics import OpRuntimeMetrics

from pipeline.bulk.run_log import ACTOR_QUEUE, BULK
from pipeline.cluster.monitoring import HISTOGRAM
from pipeline.serving.metrics import SERVING
from pipeline.version import __version__
from tests.support.jobs import REPOSITORY, run_job_here
from tests.support.manifests import INFRA, KUBERNETES, documents, found

METRICS = {metric.name: metric for metric in BULK + SERVING}
CRDS = json.loads((REPOSITORY / "tests" / "data" / "kuberay-crds.json").read_text())
README = (INFRA / "README.md").read_text()
TEXTS = {path: path.read_text() for path in INFRA.rglob("*") if path.is_file()}


@functools.cache
def help_of(job: str) -> str:
    done = run_job_here(job, "--help")
    assert done.returncode == 0
    return done.stdout


def commands() -> Iterator[list[str]]:
    """Every command that runs a job, in manifests, Dockerfile and README."""
    for text in TEXTS.values():
        for line in text.replace("\\\n", " ").splitlines():
            for match in re.finditer(r"(?:/app/)?jobs/(\w+\.py)((?: --?[\w-]+(?:[ =][^\s`\"',\]#-]\S*)*)*)", line):
                yield [match[1], *shlex.split(match[2].replace("`", ""))]
    for job in ("rayjob", "raycronjob"):
        spec = documents(KUBERNETES / f"{job}.yaml")[0]["spec"]
        yield spec.get("jobTemplate", spec)["entrypoint"].removeprefix("python /app/jobs/").split()


def test_every_command_runs_a_job_that_is_there_with_options_that_it_has() -> None:
    seen = list(commands())
    assert {job for job, *_ in seen} >= {"classify.py", "serve.py"}
    for job, *words in seen:
        for word in words:
            if word.startswith("--"):
                assert f"{word.split('=')[0]} " in help_of(job) + " ", f"{job} has no {word}"


def test_every_path_of_the_repository_exists() -> None:
    for path, text in TEXTS.items():
        for name in re.findall(r"(?<![\w/.-])(?:infra|jobs|pipeline|docs|models|tests)/[\w./-]+\w", text):
            assert (REPOSITORY / name).exists(), f"{path.name}: {name}"
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (INFRA / target).exists(), target


def test_the_image_copies_what_is_there_and_runs_as_nobody_special() -> None:
    lines = (INFRA / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert {"pyproject.toml", "constraints.txt", "models", "pipeline", "jobs"} <= set(copied)
    assert all((REPOSITORY / name).exists() for name in copied)
    allowed = {line[1:] for line in (INFRA / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    assert set(copied) == allowed
    assert [line for line in lines if line.startswith("USER ")][-1] == "USER 1000"
    base = next(line for line in lines if line.startswith("ARG PYTHON="))
    assert re.search(r"=\d+\.\d+\.\d+-", base)


def test_the_launcher_accepts_the_cluster() -> None:
    cluster = documents(INFRA / "cluster.yaml")[0]
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    types = cluster["available_node_types"]
    assert types[cluster["head_node_type"]]["resources"] == {"CPU": 0}
    assert sum(kind.get("max_workers", 0) for kind in types.values()) == cluster["max_workers"]
    for name in ("cpu", "gpu"):
        assert types[name]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


@pytest.mark.parametrize("name", ["rayjob", "raycronjob", "rayservice"])
def test_kuberay_accepts_its_manifests(name: str) -> None:
    for manifest in documents(KUBERNETES / f"{name}.yaml"):
        jsonschema.validate(manifest, CRDS[manifest["kind"]])
        cluster = next(found(manifest, "headGroupSpec"))
        containers = [c for pod in found(manifest, "containers") for c in pod]
        assert cluster["rayStartParams"]["num-cpus"] == "0"
        assert all(c["image"].startswith("registry.example.com/offramp:") for c in containers)
        of_ray = [c for c in containers if c["name"] in ("ray-head", "ray-worker")]
        assert all(8080 in [port["containerPort"] for port in c["ports"]] for c in of_ray)


def test_kuberays_schema_refuses_a_field_that_it_has_not() -> None:
    manifest = documents(KUBERNETES / "rayjob.yaml")[0]
    manifest["spec"]["shutdownAfterJobFinished"] = True
    with pytest.raises(jsonschema.ValidationError, match="shutdownAfterJobFinished"):
        jsonschema.validate(manifest, CRDS["RayJob"])


def test_versions_are_those_of_the_repository() -> None:
    pinned = dict(
        line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if "==" in line
    )
    for name in ("rayjob", "raycronjob", "rayservice"):
        assert set(found(documents(KUBERNETES / f"{name}.yaml")[0], "rayVersion")) == {pinned["ray"]}
    for path, text in TEXTS.items():
        for tag in re.findall(r"offramp:(\d[\w.]*)", text):
            assert tag == __version__, path


def test_the_nightlys_options_are_options_and_both_copies_agree() -> None:
    nightly = tomllib.loads((INFRA / "nightly.toml").read_text())
    for name in nightly:
        assert f"--{name} " in help_of("classify.py"), name
    maps = {doc["metadata"]["name"]: doc["data"] for doc in documents(KUBERNETES / "config.yaml")}
    assert tomllib.loads(maps["offramp-nightly"]["nightly.toml"]) == nightly


def test_what_is_served_can_be_imported_and_takes_its_options() -> None:
    service = yaml.safe_load(documents(KUBERNETES / "rayservice.yaml")[0]["spec"]["serveConfigV2"])
    application = service["applications"][0]
    module, name = application["import_path"].split(":")
    assert f"\ndef {name}(" in (REPOSITORY / f"{module.replace('.', '/')}.py").read_text()
    for option in application["args"]:
        assert f"--{option} " in help_of("serve.py"), option


def test_config_maps_and_claims_are_named_alike_everywhere() -> None:
    all_documents = (doc for path in KUBERNETES.glob("*.yaml") for doc in documents(path))
    made = {doc["metadata"]["name"] for doc in all_documents if doc["kind"] == "ConfigMap"}
    for path in KUBERNETES.glob("*.yaml"):
        for manifest in documents(path):
            for reference in [*found(manifest, "configMapRef"), *found(manifest, "configMap")]:
                assert reference["name"] in made, path


def test_the_policy_allows_no_more_than_reading_and_writing_its_folders() -> None:
    policy = json.loads((INFRA / "iam-policy.json").read_text())
    for statement in policy["Statement"]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert not any("*" in action for action in actions)
        assert statement["Resource"] != "*"
        if any(action in ("s3:PutObject", "s3:DeleteObject") for action in actions):
            assert statement["Resource"].endswith("/classified/*")


def test_the_dashboard_asks_for_metrics_that_are_there_with_labels_that_they_have() -> None:
    dashboard = json.loads((INFRA / "grafana" / "offramp.json").read_text())
    suffixes = {HISTOGRAM: ("_bucket", "_sum", "_count")}
    known = {m.exported + end: m for m in METRICS.values() for end in suffixes.get(m.kind, ("",))}
    asked = set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            if (own := re.findall(r"ray_data_(\w+)", target["expr"])) == [ACTOR_QUEUE]:
                assert ACTOR_QUEUE in {metric.name for metric in OpRuntimeMetrics.get_metrics()}
                continue
            assert not own
            names = re.findall(r"ray_offramp_\w+", target["expr"])
            assert names, panel["title"]
            asked |= set(names)
            for name in names:
                assert name in known, name
            for labels in re.findall(r"by \(([\w, ]+)\)", target["expr"]):
                tags = {"le", "WorkerId", *(tag for name in names for tag in known[name].tags)}
                assert set(labels.split(", ")) <= tags, target["expr"]
    assert {known[name].name for name in asked} == METRICS.keys()
