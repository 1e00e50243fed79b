"""A replica answers by the model that the server began with, or does not start."""

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.serve import build_parser
from jobs.work.serve import Complaints, serving_spec
from models.early_exit import EarlyExitModel
from pipeline.cluster.resources import ActorPlan
from pipeline.errors import StorageError
from pipeline.serving import deployment
from pipeline.serving.schema import ClassifyRequest
from pipeline.serving.spec import ServingSpec

REQUEST = ClassifyRequest.model_validate({"text": ["the room was clean", "never again"]})
PLAN = ActorPlan(actors=1, max_actors=1, cpus=1, gpus=0, threads=1)


def spec_of(model: Path, dtype: str = "fp32") -> ServingSpec:
    args = build_parser().parse(["--model", str(model), "--speed", "0.6", "--dtype", dtype])
    return deployment.settled(serving_spec(args), PLAN)


def results(spec: ServingSpec) -> list[dict[str, Any]]:
    """Start a replica, as Serve does again after a crash, and let it answer."""
    replica = deployment.Replica(spec, PLAN)
    found: list[dict[str, Any]] = asyncio.run(replica.classifier.classify(REQUEST))["results"]
    return found


def test_a_replica_that_starts_again_answers_by_the_same_model_or_not_at_all(
    model_directory: Path, tmp_path: Path
) -> None:
    shutil.copytree(model_directory, tmp_path, dirs_exist_ok=True)
    spec = spec_of(tmp_path)
    first = results(spec)
    config = tmp_path / "config.json"
    values = json.loads(config.read_text())
    labels = {"0": values["id2label"]["1"], "1": values["id2label"]["0"]}
    config.write_text(json.dumps(values | {"id2label": labels, "hidden_act": "relu"}))
    (tmp_path / "tokenizer.json").write_text("{}")
    assert results(spec) == first  # config.json and the tokenizer were read once, for all replicas
    model = EarlyExitModel.from_pretrained(model_directory)
    model.head(1).out.bias.data += 1e-3
    model.save_weights(tmp_path)
    with pytest.raises(StorageError, match=f"{tmp_path}: other weights on .+ than the run began with"):
        results(spec)


@pytest.mark.parametrize("dtype", ["auto", "bf16"])
def test_a_replica_computes_in_the_precision_that_the_server_began_in(dtype: str, model_directory: Path) -> None:
    spec = spec_of(model_directory, dtype)
    assert spec.precision in ("fp32", "bf16")
    assert spec.engine.dtype == spec.precision
    assert deployment.Replica(spec, PLAN).classifier.describe()["dtype"] == spec.precision
    other = replace(spec, precision="int8 in bf16")
    with pytest.raises(StorageError, match=f"computes in {spec.precision}, and the run began in int8 in bf16"):
        deployment.Replica(other, PLAN)


def test_a_cause_for_which_replicas_do_not_start_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Out of the traceback that Serve makes of it, at each of its tries."""
    complain = Complaints()
    for number in (3, 4):
        complain(
            f"The deployment failed to start {number} times in a row. Error:\n"
            f"\x1b[36mray::ServeReplica()\x1b[39m (pid={number})\n"
            '  File "x.py", line 1, in f\n    raise RuntimeError(traceback.format_exc()) from None\n'
            "RuntimeError: Traceback (most recent call last):\n"
            "pipeline.errors.StorageError: /models/m: other weights on host than the run began with; bring the same\n"
        )
    lines = capsys.readouterr().err
    assert lines == "replicas cannot serve: /models/m: other weights on host than the run began with; bring the same\n"
