"""Synthetic samples of exits, whose true properties are known."""

import numpy as np

from models.exits.criterion import Criterion
from models.exits.flops import FlopCounter
from models.families.table import shape_of
from pipeline.calibration.thresholds import Sample
from pipeline.evaluation.recorded import AllExits
from tests.support.models import CONFIGS

SHAPE = shape_of(CONFIGS["bert"])


def made_up(rows: int, seed: int, *, odd_exit: int | None = None) -> Sample:
    """Draw rows whose predictions differ more often the more uncertain they are, and less often at later exits.

    At the exit with index `odd_exit`, uncertainty says nothing.
    """
    random = np.random.default_rng(seed)
    hard = random.beta(0.5, 1.5, rows)
    uncertainty = np.minimum(np.abs(hard + 0.1 * random.normal(size=(3, rows))), 1).astype(np.float32)
    odds = 0.5 * uncertainty**2 * np.array([[1.0], [0.7], [0.4]])
    if odd_exit is not None:
        odds[odd_exit] = 0.4
    return Sample(
        layers=(1, 2, 3),
        depth=4,
        uncertainty=uncertainty,
        differs=random.random((3, rows)) < odds,
        lengths=random.integers(5, 60, rows),
        flops=FlopCounter(SHAPE, dict.fromkeys((1, 2, 3, 4), "pooled")),
    )


def with_classes(rows: int, seed: int) -> tuple[Sample, np.ndarray]:
    """Draw rows of four classes, the last one rare, and their true labels, of which full depth has some nine in ten.

    Earlier exits see its logits through noise, so they gain right answers too, though fewer than they lose.
    """
    random = np.random.default_rng(seed)
    labels = random.choice(4, rows, p=[0.6, 0.28, 0.08, 0.04])
    last = 6 * np.eye(4)[labels] * random.beta(2, 1, (rows, 1)) + random.normal(size=(rows, 4))
    earlier = [last + noise * random.normal(size=last.shape) for noise in (1.4, 0.9, 0.5)]
    recorded = AllExits(layers=(1, 2, 3, 4), logits=np.stack([*earlier, last]).astype(np.float32), lte=None)
    flops = FlopCounter(SHAPE, dict.fromkeys((1, 2, 3, 4), "pooled"))
    lengths = random.integers(5, 60, rows)
    return Sample.of(recorded, Criterion(speed=1.0), lengths, flops), labels.astype(np.float32)
