"""Predictions for a list of texts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.api.batches import to_numpy, to_pandas
from pipeline.rows import FloatArray
from pipeline.schema import (
    EXIT_LAYER,
    LABEL,
    LABELS,
    PROBABILITIES,
    PROBABILITY,
    SCORE,
    TRUNCATED,
    UNCERTAINTY,
    VALUE,
    WINDOWS,
)


@dataclass(frozen=True, slots=True)
class Results:
    """Predictions for B texts, in their order. Iterating gives a dict for each, None in it where a text could not be used."""

    table: pa.Table
    """One row a text, null where it could not be used; `schema.RESULTS` has the columns."""

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from self.table.to_pylist()

    @property
    def labels(self) -> list[str | None]:
        """Return the predicted class names, None for texts that could not be used."""
        return list(self.table[LABEL].to_pylist())

    @property
    def label_sets(self) -> list[list[str] | None]:
        """Return the names of the predicted labels of a model of label sets, None for texts that could not be used."""
        return list(self.table[LABELS].to_pylist())

    @property
    def scores(self) -> FloatArray:
        """Return the probabilities of the predicted classes as [B], NaN for texts that could not be used.

        Of a label set it is that of the least probable decision on a label: p where it is predicted, 1 - p where it is not.
        """
        return to_numpy(self.table[SCORE])

    @property
    def values(self) -> FloatArray:
        """Return the predicted values of a regression model as [B], NaN for texts that could not be used."""
        return to_numpy(self.table[VALUE])

    @property
    def probabilities(self) -> FloatArray:
        """Return the probabilities of all classes or labels as [B, C]; only of a classifier made with `probabilities=True`.

        Of a model of one logit it is the sigmoid of that, as [B].
        """
        return to_numpy(self.table[PROBABILITY if PROBABILITY in self.table.column_names else PROBABILITIES])

    @property
    def exit_layers(self) -> npt.NDArray[np.int16]:
        """Return the layers that each text went through as [B] int16, 0 for texts that could not be used."""
        layers: npt.NDArray[np.int16] = pc.fill_null(self.table[EXIT_LAYER], 0).to_numpy()
        return layers

    @property
    def uncertainties(self) -> FloatArray:
        """Return the uncertainties at the exits as [B] in [0, 1], NaN for texts that could not be used."""
        return to_numpy(self.table[UNCERTAINTY])

    @property
    def truncated(self) -> npt.NDArray[np.bool_]:
        """Return which texts are longer than the model reads, as [B] bool."""
        truncated: npt.NDArray[np.bool_] = pc.fill_null(self.table[TRUNCATED], False).to_numpy()
        return truncated

    @property
    def windows(self) -> npt.NDArray[np.int32]:
        """Return the windows that each text's prediction took as [B] int32, 0 for texts that could not be used.

        Only of a classifier made with `long_texts="windows"`.
        """
        windows: npt.NDArray[np.int32] = pc.fill_null(self.table[WINDOWS], 0).to_numpy()
        return windows

    def to_pandas(self) -> pd.DataFrame:
        """Return the predictions as a DataFrame, one row a text."""
        return to_pandas(self.table)
