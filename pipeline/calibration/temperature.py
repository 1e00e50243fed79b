"""Temperature scaling of exits: one number for each, so that probabilities mean what they say (Guo et al. 2017).

Logits over T > 1 are less sure. The answer stays what it is, so no label and no disagreement changes; uncertainty does.
"""

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional as F

from models.early_exit import EarlyExitModel
from pipeline.calibration.curve import Scaling
from pipeline.evaluation.recorded import AllExits
from pipeline.rows import FloatArray, IntArray

BINS = 15
RANGE = (0.05, 20.0)


def calibration_error(logits_BC: FloatArray, targets_B: IntArray) -> float:
    """Return the expected calibration error: |share of right answers - mean confidence| over 15 equal bins, weighted by rows.

    Guo et al. 2017, eq. 3.
    """
    powers = np.exp(logits_BC - logits_BC.max(1, keepdims=True))
    confidence = (powers.max(1) / powers.sum(1)).astype(np.float64)
    right: npt.NDArray[np.bool_] = logits_BC.argmax(1) == targets_B
    where = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gap = np.bincount(where, weights=right - confidence, minlength=BINS)
    return float(np.abs(gap).sum() / len(targets_B))


def fit_temperature(logits_BC: FloatArray, targets_B: IntArray) -> float:
    """Return the temperature with the least cross-entropy against these classes (Guo et al. 2017, section 4.2)."""
    logits, targets = torch.from_numpy(logits_BC).double(), torch.from_numpy(targets_B)

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(logits / np.exp(log_temperature), targets))

    found = minimize_scalar(loss, bounds=tuple(np.log(RANGE)), method="bounded")
    return float(f"{np.exp(found.x):.6g}")


def fit_exits(recorded: AllExits, labels: IntArray | None) -> list[Scaling]:
    """Fit every exit to labels [B]; without them, to the answers at full depth, and then the last exit stays as it is."""
    places = range(len(recorded.layers) if labels is not None else len(recorded.layers) - 1)
    targets = recorded.logits[-1].argmax(1) if labels is None else labels
    scalings: list[Scaling] = []
    for place in places:
        logits = recorded.logits[place]
        temperature = fit_temperature(logits, targets)
        scalings.append(
            Scaling(
                layer=recorded.layers[place],
                temperature=temperature,
                error_before=calibration_error(logits, targets),
                error_after=calibration_error(logits / np.float32(temperature), targets),
            )
        )
    return scalings


def scale_exits(model: EarlyExitModel, scalings: list[Scaling]) -> None:
    """Divide the exits' logits by their temperatures, in the weights: nothing else needs to know of it."""
    with torch.no_grad():
        for scaling in scalings:
            out = model.head(scaling["layer"]).out
            for parameter in out.parameters():
                parameter.div_(scaling["temperature"])
