#!/usr/bin/env python
"""Limits of single classes and of quality, tested on 200 random calibrations of sets whose truth is known.

python docs/results/guarantees/finer.py record --model M --pool FILE ... --rows N --work W    all exits of labelled rows, once
python docs/results/guarantees/finer.py splits --work W       the table, of what is recorded in W and of a synthetic set
python docs/results/guarantees/finer.py sizes                 how many labelled rows limits on quality take
python docs/results/guarantees/finer.py compare               how many changed answers other tests of quality would allow

A class of a recorded set is thinned to a tenth, to have a rare one.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np
import pandas as pd
from transformers import AutoTokenizer, BertConfig

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from models.exits.flops import FlopCounter
from models.families.table import shape_of
from pipeline.calibration.curve import Curve
from pipeline.calibration.fit import fit_curve
from pipeline.calibration.guarantees import loss_bound, lower_bound, rows_for_loss, upper_bound
from pipeline.calibration.limits.limits import Limits
from pipeline.calibration.thresholds import Sample
from pipeline.corpus.chunks import Chunk
from pipeline.corpus.tokenize import Tokenizer, TokenizerSpec
from pipeline.evaluation.recorded import AllExits, record_as_run

SPLITS, CALIBRATED = 200, (2000, 8000)
CRITERION = Criterion(speed=1.0)
EVERY, RARE, LOSS, ALL = 0.05, 0.05, 0.01, 0.02
ASKED = {
    "rare class 5%": Limits(max_missed=(("rare", RARE),)),
    "every class 5%": Limits(max_missed=((None, EVERY),)),
    "accuracy 1%": Limits(max_quality_loss=LOSS),
    "all three, and all rows 2%": Limits(max_disagreement=ALL, max_missed=((None, EVERY),), max_quality_loss=LOSS),
}


class Pool(NamedTuple):
    """A population with its truth."""

    sample: Sample
    labels: np.ndarray
    names: list[str]


def record(args: argparse.Namespace) -> None:
    """Write what all exits say of some rows to W/NAME.npz."""
    started, model = time.monotonic(), EarlyExitModel.from_pretrained(args.model)
    rows = pd.concat([pd.read_parquet(file) for file in args.pool]).tail(args.rows)
    spec = TokenizerSpec.from_hugging_face(AutoTokenizer.from_pretrained(args.model), model.shape.max_tokens)
    tokens = Tokenizer(spec)(rows.text.tolist()).rows
    recorded = record_as_run(model, Chunk(rows=tokens, labels=rows.label.to_numpy(np.float32)), "auto", "cpu")
    out = args.work / f"{args.model.name}.npz"
    np.savez(out, logits=recorded.logits, lengths=tokens.lengths, labels=rows.label, model=str(args.model))
    print(f"{out}: {len(rows):,} rows in {time.monotonic() - started:.0f} s")


def recorded(file: Path) -> Pool:
    """Read a recording, of which the last class is thinned."""
    kept = np.load(file)
    model = EarlyExitModel.from_pretrained(str(kept["model"]))
    labels, classes = kept["labels"], kept["logits"].shape[2]
    rare = np.flatnonzero(labels == classes - 1)
    out = np.random.default_rng(0).permutation(rare)[len(rare) // 10 :]
    rows = np.setdiff1d(np.arange(len(labels)), out)
    exits = AllExits(layers=model.exit_layers, logits=kept["logits"][:, rows], lte=None)
    sample = Sample.of(exits, CRITERION, kept["lengths"][rows], model.flops)
    return Pool(sample, labels[rows].astype(np.float32), [*map(str, range(classes - 1)), "rare"])


def synthetic(rows: int) -> Pool:
    """Draw rows of five classes, of 50 % to 3 %, of which full depth finds nine in ten, and exits that see it through noise."""
    random = np.random.default_rng(0)
    labels = random.choice(5, rows, p=[0.5, 0.3, 0.12, 0.05, 0.03])
    last = 6 * np.eye(5)[labels] * random.beta(2, 1, (rows, 1)) + random.normal(size=(rows, 5))
    noise = np.array([2.0, 1.5, 1.1, 0.8, 0.5])[:, None, None]
    logits = np.concatenate([last + noise * random.normal(size=(5, rows, 5)), last[None]]).astype(np.float32)
    shape = shape_of(BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536))
    flops = FlopCounter(shape, dict.fromkeys(range(1, 6), "attention") | {6: "pooled"})
    lengths = np.clip(np.exp(random.normal(3.7, 0.6, rows)).astype(np.int64), 4, 256)
    sample = Sample.of(AllExits(layers=(1, 2, 3, 4, 5, 6), logits=logits, lte=None), CRITERION, lengths, flops)
    return Pool(sample, labels.astype(np.float32), ["0", "1", "2", "3", "rare"])


class Outcome(NamedTuple):
    """What thresholds do to a whole pool."""

    differing: float
    missed: np.ndarray
    loss: float
    speedup: float

    def over(self, limits: Limits, names: list[str]) -> float:
        """Return the largest true fraction over its limit."""
        parts = [0.0 if limits.max_disagreement is None else self.differing / limits.max_disagreement]
        parts += [0.0 if limits.max_quality_loss is None else self.loss / limits.max_quality_loss]
        for name, missed in zip(names, self.missed, strict=True):
            limit = limits.missed_of(name)
            parts.append(0.0 if limit is None else missed / limit)
        return max(parts)


def truth(pool: Pool, speeds: np.ndarray) -> Outcome:
    """Count on the whole pool, by plain means, what thresholds do."""
    answers = pool.sample.answers
    assert answers is not None
    full, early = answers[-1], answers[pool.sample.first_exits(speeds), np.arange(len(pool.sample))]
    missed = np.array([(early[full == number] != number).mean() for number in range(len(pool.names))])
    loss = (full == pool.labels).mean() - (early == pool.labels).mean()
    return Outcome((early != full).mean(), missed, loss, 1 / pool.sample.outcome(speeds).flops_fraction)


def hindsight(pool: Pool, curve: Curve, limits: Limits) -> float:
    """Return the speed-up of a point of a path before one that breaks a limit on the whole pool, found by bisection."""
    low, high = 0, len(curve.speeds)
    while high - low > 1:
        middle = (low + high) // 2
        broken = truth(pool, np.array(curve.speeds[middle])).over(limits, pool.names) > 1
        low, high = (low, middle) if broken else (middle, high)
    return truth(pool, np.array(curve.speeds[low])).speedup


def splits(args: argparse.Namespace) -> None:
    """Calibrate on random rows of every pool, and count how often a limit is broken on all of it."""
    head = ["rows", "calibrated on", "limit", f"broken of {SPLITS}", "used", "speed-up", "in hindsight", "full depth"]
    print(f"\n| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    for name, pool in pools(args):
        for rows in CALIBRATED:
            for cells in one_size(pool, rows):
                print(f"| {name} | {rows:,} | {' | '.join(cells)} |", flush=True)


def pools(args: argparse.Namespace) -> Iterator[tuple[str, Pool]]:
    """Read the recordings, and draw the synthetic set."""
    for file in sorted(args.work.glob("*.npz")):
        yield file.stem, recorded(file)
    yield "synthetic", synthetic(30_000)


def one_size(pool: Pool, rows: int) -> Iterator[list[str]]:
    """Yield a line of the table for everything that is asked."""
    found: dict[str, list[tuple[float, float, bool]]] = {what: [] for what in ASKED}
    for seed in range(SPLITS):
        drawn = np.random.default_rng([7, seed]).permutation(len(pool.sample))[:rows]
        curve = fit_curve(pool.sample.take(drawn), CRITERION, seed, names=pool.names, labels=pool.labels[drawn])
        for what, limits in ASKED.items():
            criterion = curve.within_limits(limits).criterion
            speeds = np.array([criterion.speed_at(layer) for layer in pool.sample.layers])
            then = truth(pool, speeds)
            found[what].append((then.over(limits, pool.names), then.speedup, criterion.full_depth))
    for what, limits in ASKED.items():
        over, speedup, stays = np.array(found[what]).T
        best = hindsight(pool, curve, limits)
        cells = [what, f"{(over > 1).sum()}", f"{over.mean():.0%}", f"{speedup.mean():.2f}x", f"{best:.2f}x"]
        yield [*cells, f"{stays.sum():.0f}"]


def sizes(_args: argparse.Namespace) -> None:
    """Print how many labelled rows limits on quality take, by what is lost and gained."""
    parts = {
        "nothing": (0, 0),
        "half, a quarter": (0.5, 0.25),
        "all, half": (1, 0.5),
        "twice, 1.5": (2, 1.5),
        "5, 5": (5, 5),
    }
    print(f"\n| limit | {' | '.join(parts)} |\n|{'---|' * (len(parts) + 1)}")
    for confidence in (0.9, 0.95, 0.99):
        for limit in (0.005, 0.01, 0.02, 0.05):
            needed = [rows_for_loss(limit, confidence, lost * limit, gained * limit) for lost, gained in parts.values()]
            print(f"| {limit:.1%} at {confidence:.0%} | {' | '.join(f'{rows:,}' for rows in needed)} |")


def compare(_args: argparse.Namespace) -> None:
    """Print the changed answers, in percent of all rows, up to which tests of a loss of 1 % pass at 95 %."""
    limit, confidence = 0.01, 0.95
    tests: dict[str, Callable[[int, int, int], bool]] = {
        "lost alone": lambda lost, _, rows: upper_bound(lost, rows, confidence) <= limit,
        "changed, and lost of these": lambda lost, gained, rows: loss_bound(lost, gained, rows, confidence) <= limit,
        "lost less gained, half of 1 - C each": lambda lost, gained, rows: (
            upper_bound(lost, rows, (1 + confidence) / 2) - lower_bound(gained, rows, (1 + confidence) / 2) <= limit
        ),
        "betting": lambda lost, gained, rows: _bets(lost, gained, rows, limit) >= np.log(1 / (1 - confidence)),
    }
    print(f"\n| rows | lost of changed | {' | '.join(tests)} |\n|{'---|' * (len(tests) + 2)}")
    for rows in (1000, 3000, 15_000):
        for part in (1.0, 0.75, 0.6):
            allowed = []
            for test in tests.values():
                changed = next(k for k in range(rows) if not test(round(part * k), k - round(part * k), rows)) - 1
                allowed.append(f"{max(changed, 0) / rows:.2%}")
            print(f"| {rows:,} | {part:.0%} | {' | '.join(allowed)} |")


def _bets(lost: int, gained: int, rows: int, limit: float) -> float:
    """Return the logarithm of what 60 bets against a loss above the limit win on average (Waudby-Smith and Ramdas 2024)."""
    bets = np.geomspace(0.001, 0.999, 60) / (1 - limit)
    same = rows - lost - gained
    won = lost * np.log1p(bets * (limit - 1)) + same * np.log1p(bets * limit) + gained * np.log1p(bets * (limit + 1))
    return float(np.logaddexp.reduce(won) - np.log(len(bets)))


STEPS: dict[str, Callable[[argparse.Namespace], None]] = {
    "record": record,
    "splits": splits,
    "sizes": sizes,
    "compare": compare,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*STEPS])
    parser.add_argument("--model", type=Path, help="its folder's name is that of the recording")
    parser.add_argument("--pool", type=Path, nargs="+")
    parser.add_argument("--rows", type=int, default=12_000, help="the last of the pool, at most")
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    STEPS[options.what](options)
