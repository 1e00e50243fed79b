"""Fitting a calibration: from the recorded exits of a sample to the curve from which thresholds are chosen."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from models.early_exit import EarlyExitModel
from models.exits.criterion import THRESHOLD_CRITERIA, TOLERANCE, Criterion
from pipeline.calibration.curve import FIT_FRACTION, SPLIT_ROWS, Curve
from pipeline.calibration.limits.counts import Predicted, count
from pipeline.calibration.texts import TextSample
from pipeline.calibration.thresholds import Floats, Sample, cheapest_path, single_path
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import check_exits
from pipeline.errors import UserError
from pipeline.rows import FloatArray, IntArray, TokenRows


def criterion_for(
    model: EarlyExitModel, name: str | None, tolerance: float | None, label_thresholds: tuple[float, ...] = ()
) -> Criterion:
    """Return the criterion to calibrate: the named one, else the model's own, else what suits its task.

    `label_thresholds` are those of a Criterion, for a model of label sets. Raises UserError if the model cannot use it.
    """
    stored = (
        model.criterion.name if model.criterion is not None and model.criterion.name in THRESHOLD_CRITERIA else None
    )
    if len(model.exit_layers) == 1:
        raise UserError("the model has no exits, so there is nothing to calibrate; jobs/distill.py adds them")
    chosen = name or stored or ("lte" if model.regression else "entropy")
    tolerance = TOLERANCE if tolerance is None else tolerance
    criterion = Criterion(name=chosen, speed=1.0, tolerance=tolerance, label_thresholds=label_thresholds)
    check_exits(model, EngineConfig(criterion=criterion))
    return criterion


def fit_rows(count: int, seed: int) -> IntArray:
    """Draw the rows of a sample that fit thresholds or temperatures; guarantees are tested on the others."""
    return np.random.default_rng(seed).permutation(count)[: int(FIT_FRACTION * count)]


def fit_curve(
    sample: Sample | TextSample,
    criterion: Criterion,
    seed: int = 0,
    *,
    fitted: IntArray | None = None,
    names: Sequence[str] = (),
    labels: FloatArray | None = None,
) -> Curve:
    """Fit a path of thresholds on a part of a sample, and count along it on the rest.

    A small sample is counted as a whole, along a path fixed beforehand, but for rows on which temperatures were `fitted`; these
    then fit the path of a large one.
    With the `names` of classes, or labels, each of them is counted too; with true `labels`, by `corpus.labelled.label_array`,
    right answers are.
    """
    fit, large = fit_rows(len(sample), seed) if fitted is None else fitted, len(sample) >= SPLIT_ROWS
    path = cheapest_path(_rows(sample.take(fit))) if large else single_path(len(sample.layers))
    tested = np.delete(np.arange(len(sample)), fit if large or fitted is not None else [])
    return count_along(path, sample, sample.take(tested), criterion, names, None if labels is None else labels[tested])


def _rows(sample: Sample | TextSample) -> Sample:
    """Return the rows that exit: those of the sample, or the windows of its texts."""
    return sample.windows if isinstance(sample, TextSample) else sample


def count_along(
    path: Floats,
    sample: Sample | TextSample,
    tested: Sample | TextSample,
    criterion: Criterion,
    names: Sequence[str] = (),
    labels: FloatArray | None = None,
) -> Curve:
    """Count along a path [P, E]: FLOPs and exits on all rows, and on those that did not choose it what becomes of predictions.

    `names` and `labels` are those of `fit_curve`, of the rows that are `tested`.
    """
    outcomes, rows = [sample.outcome(speeds) for speeds in path], _rows(sample)
    # A point at which every row exits where it did before adds nothing; without such points the file is small.
    exits = [np.bincount(rows.first_exits(speeds), minlength=len(rows.layers) + 1) for speeds in path]
    new = [point for point in range(len(path)) if not point or (exits[point] != exits[point - 1]).any()]
    path, outcomes = path[new], [outcomes[point] for point in new]
    cells: list[IntArray] = []

    def predictions() -> Iterator[Predicted]:
        for speeds in path:
            published = tested.published(speeds)
            cells.append(published.cells)
            if published.predicted is not None:
                yield published.predicted

    classes, quality = count(predictions(), names, labels)
    return Curve(
        criterion=criterion.name,
        tolerance=criterion.tolerance,
        layers=list(sample.layers),
        depth=sample.depth,
        speeds=path.tolist(),
        flops_fractions=[outcome.flops_fraction for outcome in outcomes],
        exits=[outcome.exits.tolist() for outcome in outcomes],
        differing=[int(differing.sum()) for _, differing in cells],
        tested=len(tested),
        label_thresholds=list(criterion.label_thresholds),
        classes=classes,
        quality=quality,
        cell_rows=[rows.tolist() for rows, _ in cells],
        cell_differing=[differing.tolist() for _, differing in cells],
    )


def describe_data(rows: TokenRows, rejected: int, seed: int) -> dict[str, Any]:
    """Describe a sample for `Calibration.data`: its size, and a digest that tells it from any other."""
    digest = hashlib.blake2b(rows.token_ids.tobytes() + rows.offsets.tobytes(), digest_size=8).hexdigest()
    return {"rows": len(rows), "rejected": rejected, "tokens": len(rows.token_ids), "digest": digest, "seed": seed}
