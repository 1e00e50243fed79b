"""Work for benchmarks: lengths as real corpora have them, and exits by plan, so that speed does not depend on weights."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.rows import IntArray, TokenRows


class ForcedPlan:
    """An exit rule by which every row exits after a given layer, whatever its uncertainty is.

    Example: `engine.run(rows, ForcedPlan(np.array([1, 4])))` for two rows, the second of which goes to full depth in a model of
    four layers. A row whose layer has no exit takes the next one.
    """

    def __init__(self, plan: IntArray | Tensor) -> None:
        """Take the exit layer of every row: [B]."""
        self.plan_B = torch.as_tensor(plan)

    def to(self, device: torch.device) -> Self:
        return type(self)(self.plan_B.to(device))

    def exits(self, layer: int, uncertainty_B: Tensor, rows_B: Tensor) -> Tensor:
        return self.plan_B[rows_B] <= layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Token rows and the layer after which each of them exits."""

    rows: TokenRows
    exit_plan: IntArray
    """Exit layer of every row: [B]."""

    @property
    def rule(self) -> ForcedPlan:
        """The exit rule that makes an engine follow the plan."""
        return ForcedPlan(self.exit_plan)

    @property
    def mean_exit(self) -> float:
        """Mean of the exit layers."""
        return float(self.exit_plan.mean())

    def about(self, count: int) -> "Workload":
        """Return rows at equal distances: at least this many and at most twice as many, or all if there are fewer."""
        rows = np.arange(0, len(self.rows), max(len(self.rows) // count, 1))
        return Workload(rows=self.rows.take(rows), exit_plan=self.exit_plan[rows])

    def in_calls_of(self, count: int) -> list["Workload"]:
        """Cut the rows, in order, into workloads of this many rows; the last may be smaller."""
        parts = [np.arange(start, min(start + count, len(self.rows))) for start in range(0, len(self.rows), count)]
        return [Workload(rows=self.rows.take(part), exit_plan=self.exit_plan[part]) for part in parts]


def make_workload(
    count: int,
    *,
    mean_tokens: float,
    sigma: float,
    longest: int,
    layers: int,
    mean_exit: float,
    vocabulary: int,
    seed: int,
) -> Workload:
    """Draw rows of log-normal lengths (mean and sigma of the logarithm given) and exit layers with this mean."""
    random = np.random.default_rng(seed)
    lengths = np.exp(random.normal(np.log(mean_tokens) - sigma**2 / 2, sigma, count))
    lengths = np.clip(lengths.round().astype(np.int64), 4, longest)
    rows = TokenRows(
        token_ids=random.integers(vocabulary // 30, vocabulary, lengths.sum(), dtype=np.int32),
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        segments=lengths.astype(np.int32),
    )
    fractions = exit_fractions(layers, mean_exit)
    return Workload(rows=rows, exit_plan=random.choice(np.arange(1, layers + 1), size=count, p=fractions))


def exit_fractions(layers: int, mean_exit: float) -> npt.NDArray[np.float64]:
    """Return the fraction of rows that exit after each layer: falling (or rising) geometrically, with this mean.

    Of all distributions on 1..L with a given mean this one has the largest entropy, so it favours no layer.
    """
    if not 1 <= mean_exit <= layers:
        raise ValueError(f"mean exit must be in [1, {layers}], not {mean_exit}")
    numbers = np.arange(1, layers + 1)

    def fractions(slope: float) -> npt.NDArray[np.float64]:
        weights = np.exp(slope * (numbers - numbers.mean()))
        return weights / weights.sum()

    low, high = -40.0, 40.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if fractions(middle) @ numbers < mean_exit else (low, middle)
    return fractions(low)
