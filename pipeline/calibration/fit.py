"""Making a calibration: from a recording of a sample to the curve that can be asked (pipeline.calibration)."""

import hashlib
from typing import Any

import numpy as np

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.calibration.curve import FIND_SHARE, SPLIT_ROWS, Curve
from pipeline.calibration.thresholds import Floats, Sample, cheapest_path, single_path
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import check_exits
from pipeline.errors import UserError
from pipeline.rows import IntArray, TokenRows

CALIBRATED = ("entropy", "confidence", "lte")
"""Criteria with thresholds: patience has none."""


def criterion_for(model: EarlyExitModel, name: str | None, tolerance: float) -> Criterion:
    """Return the criterion whose thresholds are looked for: as named, the model's own, or what suits its task.

    Raises UserError if the model cannot use it.
    """
    stored = model.criterion.name if model.criterion is not None and model.criterion.name in CALIBRATED else None
    if len(model.exit_layers) == 1:
        raise UserError("the model has no exits, so there is nothing to calibrate; jobs/distill.py adds them")
    chosen = name or stored or ("lte" if model.regression else "entropy")
    criterion = Criterion(name=chosen, speed=1.0, tolerance=tolerance)
    check_exits(model, EngineConfig(criterion=criterion))
    return criterion


def finding_rows(count: int, seed: int) -> IntArray:
    """Draw the rows of a sample that may choose something; what is promised is tested on the others."""
    return np.random.default_rng(seed).permutation(count)[: int(FIND_SHARE * count)]


def curve_of(sample: Sample, criterion: Criterion, seed: int = 0, *, chose: bool = False) -> Curve:
    """Find a path of thresholds on a part of a sample, and count along it on the rest.

    A small sample is counted whole, along a path fixed beforehand, unless its `finding_rows` `chose` something already.
    """
    finding, large = finding_rows(len(sample), seed), len(sample) >= SPLIT_ROWS
    path = cheapest_path(sample.take(finding)) if large else single_path(len(sample.layers))
    tested = np.delete(np.arange(len(sample)), finding if large or chose else [])
    return curve_along(path, sample, sample.take(tested), criterion)


def curve_along(path: Floats, sample: Sample, tested: Sample, criterion: Criterion) -> Curve:
    """Count along a given path [P, E]: costs on all rows, differing answers on those that did not choose it."""
    outcomes = [sample.outcome(speeds) for speeds in path]
    # Points at which no row does anything else say nothing new; without them the file is small.
    new = [place for place in range(len(path)) if not place or (outcomes[place][2] != outcomes[place - 1][2]).any()]
    path, outcomes = path[new], [outcomes[place] for place in new]
    return Curve(
        criterion=criterion.name,
        tolerance=criterion.tolerance,
        layers=list(sample.layers),
        depth=sample.depth,
        speeds=path.tolist(),
        shares=[share for share, _, _ in outcomes],
        exits=[rows.tolist() for _, _, rows in outcomes],
        differing=[tested.outcome(speeds)[1] for speeds in path],
        tested=len(tested),
    )


def data_of(rows: TokenRows, rejected: int, seed: int) -> dict[str, Any]:
    """Describe a sample: `Calibration.data`."""
    digest = hashlib.blake2b(rows.token_ids.tobytes() + rows.offsets.tobytes(), digest_size=8).hexdigest()
    return {"rows": len(rows), "rejected": rejected, "tokens": len(rows.token_ids), "digest": digest, "seed": seed}
