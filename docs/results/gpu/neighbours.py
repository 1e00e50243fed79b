#!/usr/bin/env python
"""Look whether a row's prediction depends on the rows beside it: the same rows in other calls, orders and bundle sizes.

Every way of running them is compared with one call in their own order, in bf16, if the device multiplies it, and in fp32: rows
whose exit differs, rows whose label differs, and the largest difference of a logit among rows with the same exit. Sums in
another order round differently, so differences need not be 0, but those of the repeated call must be.

  python docs/results/gpu/neighbours.py
  python docs/results/gpu/neighbours.py --shape 2x128 --rows 500 --dtypes fp32
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import argparse
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from docs.results.gpu import made
from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from models.precision import best_dtype
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.rows import IntArray, Predictions, TokenRows

CALLS = (1_000, 16_384)
"""Rows in a call."""
FEW_ROWS = 64
"""Rows that are also run one by one."""


def run_in(engine: Engine, rows: TokenRows, order: IntArray, call_rows: int) -> Predictions:
    """Run these rows, in this order, in calls of `call_rows`; return the predictions in the same order."""
    calls = [order[start : start + call_rows] for start in range(0, len(order), call_rows)]
    return Predictions.join([engine.run(rows.take(call)) for call in calls])


def ways(engine: Engine, rows: TokenRows) -> Mapping[str, Callable[[], tuple[IntArray, Predictions]]]:
    """Return ways to run rows, by name; each returns the numbers of the rows that it ran and their predictions."""
    count = len(rows)
    forward, few = np.arange(count), np.unique(np.linspace(0, count - 1, FEW_ROWS).astype(np.int64))
    shuffled = np.random.default_rng(0).permutation(count)
    every_other = forward[::2]

    def way(order: IntArray, call_rows: int) -> Callable[[], tuple[IntArray, Predictions]]:
        return lambda: (order, run_in(engine, rows, order, call_rows))

    found = {"repeated": way(forward, count), "shuffled": way(shuffled, count)}
    found |= {"reversed": way(forward[::-1].copy(), count), "every other row": way(every_other, count)}
    found |= {f"shuffled, {calls:,} a call": way(shuffled, calls) for calls in CALLS if calls < count}
    return found | {f"{len(few)} rows, each alone": way(few, 1)}


def compare(reference: Predictions, order: IntArray, got: Predictions) -> dict[str, Any]:
    """Count rows of `order` whose exit or label differ from the reference, and find the largest difference of a logit.

    Logits are compared between rows with the same exit, since others are of another head.
    """
    same_exit = got.exit_layers == reference.exit_layers[order]
    differences = np.abs(got.logits - reference.logits[order])[same_exit]
    return {
        "rows": len(order),
        "exits_differ": int((~same_exit).sum()),
        "labels_differ": int((got.label_ids != reference.label_ids[order]).sum()),
        "largest_logit_difference": float(differences.max(initial=0.0)),
    }


def measure(args: argparse.Namespace, case: made.Case, dtype: str) -> dict[str, Any]:
    """Run all rows in every way, in one precision; print a line of the table for each."""
    rows = case.rows(args.rows)
    with LoadedModel(EarlyExitModel.from_pretrained(case.model), EngineConfig(dtype=dtype), made.DEVICE) as loaded:
        engine = Engine(loaded)
        engine = engine.with_criterion(Criterion(speed=made.speed_of(args, engine, rows)))
        reference = engine.run(rows)
        found = {}
        for name, run in ways(engine, rows).items():
            found[name] = compare(reference, *run())
            cells = [f"{dtype}, {name}", *(f"{value:,}" for value in list(found[name].values())[:3])]
            print(f"| {' | '.join(cells)} | {found[name]['largest_logit_difference']:.2g} |", flush=True)
    return {"mean_exit": float(reference.exit_layers.mean()), "speed": engine.config.criterion.speed, "ways": found}


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of this script's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_options(parser, rows=20_000)
    dtypes = list(dict.fromkeys([best_dtype(torch.device(made.DEVICE)), "fp32"]))
    parser.add_argument("--dtypes", nargs="+", default=dtypes, help=f"(default: {' '.join(dtypes)})")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    print("| | rows | exits that differ | labels that differ | largest difference of a logit |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        case = made.open_case(args, Path(folder))
        made.write_document({dtype: measure(args, case, dtype) for dtype in args.dtypes}, args.output)


if __name__ == "__main__":
    main()
