#!/usr/bin/env python
"""Count how many labels and exits change with the precision, and with the form of GELU, on the same rows and threshold.

GELU has an exact form, by erf, and one by tanh that fused kernels of GPUs compute. Copies of the model whose feed-forward
blocks name either form are run in fp32 and in bf16, and so is the model as it is, where the engine chooses. Each is compared
with fp32 and erf.

  python docs/results/gpu/agreement.py --model my-model --input corpus/ --speed 0.3
  python docs/results/gpu/agreement.py --shape 4x128 --rows 1000
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import argparse
import contextlib
import itertools
import json
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from docs.results.gpu import made
from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.rows import Predictions, TokenRows

FORMS = {"erf": "gelu_python", "tanh": "gelu_pytorch_tanh", "own": None}
"""What transformers calls each form of GELU; "gelu_python" is computed by erf, whatever kernels the engine has for "gelu".
"own" is the model as it is."""
DTYPES = ("fp32", "bf16")


def with_activation(model: str, activation: str | None, folder: Path) -> str:
    """Return the directory of a copy of the model that names this activation in its config; None is the model itself."""
    if activation is None:
        return model
    copied = folder / activation
    copied.mkdir()
    for path in Path(model).resolve().iterdir():
        if path.is_file() and path.name != "config.json":
            (copied / path.name).symlink_to(path)
    config = json.loads(Path(model, "config.json").read_text())
    name = "activation" if config["model_type"] == "distilbert" else "hidden_act"
    (copied / "config.json").write_text(json.dumps(config | {name: activation}))
    return str(copied)


def agreement(reference: Predictions, got: Predictions) -> dict[str, Any]:
    """Count rows whose label or exit differ, and take the largest and the mean difference of a logit at the same exit."""
    same_exit = got.exit_layers == reference.exit_layers
    differences = np.abs(got.logits - reference.logits)[same_exit]
    return {
        "labels_differ": int((got.label_ids != reference.label_ids).sum()),
        "exits_differ": int((~same_exit).sum()),
        "largest_logit_difference": float(differences.max(initial=0.0)),
        "mean_logit_difference": float(differences.mean()) if differences.size else 0.0,
    }


class Runs:
    """Runs of the same rows by copies of one model."""

    def __init__(self, case: made.Case, rows: TokenRows, folder: Path) -> None:
        self.rows = rows
        self.models = {form: with_activation(case.model, name, folder) for form, name in FORMS.items()}

    @contextlib.contextmanager
    def engine(self, dtype: str, form: str) -> Iterator[Engine]:
        """Load a copy of the model, for a while."""
        model = EarlyExitModel.from_pretrained(self.models[form])
        with LoadedModel(model, EngineConfig(dtype=dtype), made.DEVICE) as loaded:
            yield Engine(loaded)

    def run(self, dtype: str, form: str, criteria: Mapping[str, Criterion]) -> dict[str, Predictions]:
        """Run all rows by this copy, in this precision, with each criterion."""
        with self.engine(dtype, form) as engine:
            return {name: engine.with_criterion(criterion).run(self.rows) for name, criterion in criteria.items()}


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run all copies; print a line of the table for each."""
    case = made.open_case(args, folder)
    runs = Runs(case, case.rows(args.rows), folder)
    with runs.engine("fp32", "erf") as engine:
        speed = made.speed_of(args, engine, runs.rows)
    criteria = {"full_depth": Criterion(), "threshold": Criterion(speed=speed)}
    reference = runs.run("fp32", "erf", criteria)
    mean_exit = float(reference["threshold"].exit_layers.mean())
    document: dict[str, Any] = {"rows": len(runs.rows), "speed": speed, "mean_exit": mean_exit}
    print(f"{len(runs.rows):,} rows, mean exit {mean_exit:.2f}; differences from fp32 and erf\n")
    print("| | labels, full depth | largest logit | labels, threshold | exits, threshold | largest logit |")
    print("| --- | --- | --- | --- | --- | --- |")
    for dtype, form in itertools.product(DTYPES, FORMS):
        got = runs.run(dtype, form, criteria)
        full, early = (agreement(reference[name], got[name]) for name in criteria)
        cells = [f"{dtype}, {form}", f"{full['labels_differ']:,}", f"{full['largest_logit_difference']:.2g}"]
        cells += [f"{early['labels_differ']:,}", f"{early['exits_differ']:,}"]
        print(f"| {' | '.join(cells)} | {early['largest_logit_difference']:.2g} |", flush=True)
        document[f"{dtype}, {form}"] = {"full_depth": full, "threshold": early}
    return document


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of this script's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_options(parser, rows=20_000)
    return parser


def main() -> None:
    args = build_parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made.write_document(measure(args, Path(folder)), args.output)


if __name__ == "__main__":
    main()
