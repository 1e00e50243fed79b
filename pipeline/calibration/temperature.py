"""Temperature scaling of exits: one number for each, so that a probability is a frequency (Guo et al. 2017).

Logits divided by T > 1 are less certain. The prediction stays what it is, so no label and no disagreement changes; uncertainty
does.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from torch.nn import functional as F

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from models.exits.task import Task
from pipeline.calibration.curve import Scaling
from pipeline.corpus.chunks import Chunk
from pipeline.errors import InputError
from pipeline.evaluation.recorded import AllExits, record_as_run
from pipeline.rows import FloatArray, IntArray

BINS = 15
"""The bins of the calibration error, as in Guo et al. 2017."""
RANGE = (0.05, 20.0)
"""Temperatures are searched in this interval."""


def calibration_error(logits_BC: FloatArray, targets_B: IntArray) -> float:
    """Return the expected calibration error: |accuracy - mean confidence| over 15 equal bins, weighted by rows.

    Guo et al. 2017, eq. 3. Two rows classified with confidence 0.8, one of them correctly, have an error of 0.3.
    """
    confidence = softmax(logits_BC, axis=1).max(1).astype(np.float64)
    correct: npt.NDArray[np.bool_] = logits_BC.argmax(1) == targets_B
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gap = np.bincount(bins, weights=correct - confidence, minlength=BINS)
    return float(np.abs(gap).sum() / len(targets_B))


def fit_temperature(logits_BC: FloatArray, targets_B: IntArray) -> float:
    """Return the temperature with the least cross-entropy against these classes (Guo et al. 2017, section 4.2)."""
    logits, targets = torch.from_numpy(logits_BC).double(), torch.from_numpy(targets_B)

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(logits / np.exp(log_temperature), targets))

    minimum = minimize_scalar(loss, bounds=tuple(np.log(RANGE)), method="bounded")
    return float(f"{np.exp(minimum.x):.6g}")


def fit_exits(recorded: AllExits, labels: IntArray | None) -> list[Scaling]:
    """Fit every exit to labels [B]; without labels, every exit but the last to the predictions at full depth."""
    count = len(recorded.layers) if labels is not None else len(recorded.layers) - 1
    targets = recorded.logits[-1].argmax(1) if labels is None else labels
    scalings: list[Scaling] = []
    for layer, logits in list(zip(recorded.layers, recorded.logits, strict=True))[:count]:
        temperature = fit_temperature(logits, targets)
        scalings.append(
            Scaling(
                layer=layer,
                temperature=temperature,
                error_before=calibration_error(logits, targets),
                error_after=calibration_error(logits / np.float32(temperature), targets),
            )
        )
    return scalings


def scale_exits(model: EarlyExitModel, scalings: list[Scaling]) -> None:
    """Divide the exits' logits by their temperatures, in the weights, so that nothing else needs to know of them."""
    with torch.no_grad():
        for scaling in scalings:
            out = model.head(scaling["layer"]).out
            for parameter in out.parameters():
                parameter.div_(scaling["temperature"])


def scale_stored_model(
    directory: str | Path, examples: Chunk, *, to_labels: bool, dtype: str, device: str
) -> tuple[list[Scaling], Criterion | None]:
    """Put a temperature on every exit of a stored model, fitted on examples that test no guarantee.

    With `to_labels` the rows that have a label are used and fitted to it. A stored threshold on entropy or confidence would
    mean something else after scaling, so it is taken out; the second result is that criterion. Raises InputError if the model
    predicts a value or label sets, or no row can be used.
    """
    model = EarlyExitModel.from_pretrained(directory)
    if model.task is not Task.CLASSES:
        what = "a value" if model.task is Task.VALUE else "label sets"
        raise InputError("temperature", f"needs classes, and the model predicts {what}")
    used = examples.take(np.flatnonzero(~np.isnan(examples.labels))) if to_labels else examples
    recorded = record_as_run(model, used, dtype, device)
    finite = np.flatnonzero(recorded.finite)
    if not len(finite):
        raise InputError(
            "temperature", f"cannot be fitted: none of the {len(examples):,} rows for it can be used; give more"
        )
    labels = used.labels[finite].astype(np.int64) if to_labels else None
    scalings = fit_exits(recorded.take(finite), labels)
    model = EarlyExitModel.from_pretrained(directory)  # once more, since recording has cast the weights
    scale_exits(model, scalings)
    model.save_weights(directory)
    stored = model.criterion
    if stored is None or stored.name not in ("entropy", "confidence"):
        return scalings, None
    model.criterion = None
    model.save_criterion(directory)
    return scalings, stored
