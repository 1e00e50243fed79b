"""Which exits pay, against an exhaustive search."""

from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation import EXIT_TEST_LAYERS, AllExits, exits_that_pay

LAYERS = (1, 2, 3, 4)


def recorded(uncertainty_EB: np.ndarray) -> AllExits:
    values = uncertainty_EB.astype(np.float32)
    return AllExits(layers=LAYERS, label_ids=np.zeros(values.shape, np.int64), uncertainty=values)


def cost(kept: tuple[int, ...], uncertainty_EB: np.ndarray, speed: float) -> float:
    """Layers and exit tests of every row, one row at a time."""
    total = 0.0
    for row in uncertainty_EB.T:
        for tests, layer in enumerate(kept):
            if row[layer - 1] <= speed or layer == LAYERS[-1]:
                total += layer + EXIT_TEST_LAYERS * tests
                break
    return total


@given(seed=st.integers(0, 10_000), share=st.floats(0, 1))
def test_no_exit_can_be_dropped_from_those_that_pay(seed: int, share: float) -> None:
    uncertainty = (np.random.default_rng(seed).random((4, 30)) > share * np.array([[0.1], [0.3], [0.5], [1]])) * 1.0
    chosen = exits_that_pay(recorded(uncertainty), 0.5)
    assert chosen[-1] == 4
    least = cost(chosen, uncertainty, 0.5)
    assert least <= cost(LAYERS, uncertainty, 0.5) + 1e-9
    for fewer in combinations(chosen[:-1], max(len(chosen) - 2, 0)):
        assert least <= cost((*fewer, 4), uncertainty, 0.5) + 1e-9


def test_an_exit_that_nobody_takes_does_not_pay_and_one_that_half_take_does() -> None:
    uncertainty = np.ones((4, 10))
    uncertainty[1, :5] = 0.0
    assert exits_that_pay(recorded(uncertainty), 0.5) == (2, 4)


def test_at_full_depth_only_the_last_exit_pays() -> None:
    assert exits_that_pay(recorded(np.ones((4, 10))), 0.0) == (4,)
