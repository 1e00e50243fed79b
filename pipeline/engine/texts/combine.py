"""Make one prediction of those of a text's windows: arithmetic on arrays.

A text of one window has that window's prediction, to the bit. Of more windows,

                    logits                                              uncertainty
    mean            log of the mean probabilities (classes), logit of   mean
                    them (labels), mean (values)
    max             those of the window with the largest probability    that window's
                    (classes) or value; the largest of each label       (labels: the largest)
    first-certain   those of the first window that is certain, else     that window's
                    of the least uncertain one

and the exit layer is the deepest of all that were computed: so far the text had to go.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.rows import FloatArray, IntArray, Predictions, offsets_of

LEAST = float(np.finfo(np.float32).tiny)
"""The least probability that is told from 0, and the least difference from 1: its logit is finite in float32."""


def combine(how: str, windows: Predictions, counts: IntArray) -> Predictions:
    """Combine the predictions of W windows into those of B texts, which have `counts` of them: by `LongTexts.combine`."""
    if len(windows.exit_layers) == len(counts):
        return windows
    with np.errstate(invalid="ignore"):  # logits that are no numbers: their texts get none
        return _combine(how, windows, counts)


def _combine(how: str, windows: Predictions, counts: IntArray) -> Predictions:
    starts = offsets_of(counts)[:-1]
    made = _speaking(how, windows, starts, counts)
    if how == "mean":
        made = replace(
            made, logits=_mean_logits(windows, starts, counts), uncertainty=_mean(windows.uncertainty, starts, counts)
        )
    elif how == "max" and windows.boundaries is not None:
        made = replace(
            made,
            logits=np.maximum.reduceat(windows.logits, starts),
            uncertainty=np.maximum.reduceat(windows.uncertainty, starts),
        )
    alone = counts == 1
    broken = ~np.logical_and.reduceat(np.isfinite(windows.logits).all(1), starts)
    logits = np.where(alone[:, None], windows.logits[starts], made.logits)
    return replace(
        made,
        logits=np.where(broken[:, None], np.float32(np.nan), logits),
        uncertainty=np.where(alone, windows.uncertainty[starts], made.uncertainty),
        exit_layers=np.maximum.reduceat(windows.exit_layers, starts),
        layer_tokens=windows.layer_tokens,
        padding_tokens=windows.padding_tokens,
    )


def _speaking(how: str, windows: Predictions, starts: IntArray, counts: IntArray) -> Predictions:
    """Return the predictions of the window of each text that decides alone, if any does: [B]."""
    if how == "first-certain":  # none was computed after one that is certain, so that is the least uncertain
        return windows.take(first_largest(-windows.uncertainty, starts, counts))
    one_value = windows.logits.shape[1] == 1
    return windows.take(first_largest(windows.logits[:, 0] if one_value else windows.scores, starts, counts))


def first_largest(values_W: FloatArray, starts: IntArray, counts: IntArray) -> IntArray:
    """Return the index of the first of the largest values of each text: [2, 7, 7, 1] of texts of 3 and 1 is [1, 3]."""
    values_W = np.nan_to_num(values_W, nan=-np.inf)
    largest_W = np.repeat(np.maximum.reduceat(values_W, starts), counts)
    index_W = np.where(values_W == largest_W, np.arange(len(values_W)), len(values_W))
    first: IntArray = np.minimum.reduceat(index_W, starts)
    return first


def _mean_logits(windows: Predictions, starts: IntArray, counts: IntArray) -> FloatArray:
    """Return the logits by which a text has the mean probabilities of its windows, or their mean value: [B, C]."""
    if windows.boundaries is None and windows.logits.shape[1] == 1:
        return _mean(windows.logits, starts, counts)
    probabilities = _mean(windows.probabilities.astype(np.float64), starts, counts)
    logits = np.log(np.maximum(probabilities, LEAST))
    if windows.boundaries is not None:
        logits -= np.log(np.maximum(1.0 - probabilities, LEAST))
    return logits.astype(np.float32)


def _mean(values_W: npt.NDArray[Any], starts: IntArray, counts: IntArray) -> npt.NDArray[Any]:
    """Return the mean of the values of each text's windows: [W, ...] -> [B, ...]."""
    sums = np.add.reduceat(values_W.astype(np.float64), starts)
    return (sums.T / counts).T.astype(values_W.dtype)
