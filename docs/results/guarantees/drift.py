#!/usr/bin/env python
"""Simulate drift: how many rows show that hard rows are twice as many, how rarely unchanged nights alarm, and thirty nights.

python docs/results/guarantees/drift.py power                      the tables
python docs/results/guarantees/drift.py nights --output FOLDER     thirty nights through ledger and manifest, and their page
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np
from transformers import BertConfig

from docs.results.guarantees.run import CONFIDENCE, CRITERION, synthetic
from models.exits.flops import FlopCounter
from models.families.table import shape_of
from pipeline.bulk.progress import Timeline
from pipeline.calibration.curve import Choice, Curve
from pipeline.calibration.drift.cells import BINS, cells_of
from pipeline.calibration.drift.signals import reference_of
from pipeline.calibration.fit import fit_curve
from pipeline.calibration.limits.limits import Limits
from pipeline.calibration.thresholds import Sample
from pipeline.calibration.verdict import AuditResult, Guarantee, judge
from pipeline.histograms import LENGTH_EDGES, SCORE_BINS, bins_of
from pipeline.nights import Night
from pipeline.output.ledger import Ledger
from pipeline.output.totals import Totals
from pipeline.predicted import Comparison, PredictionBins
from pipeline.reports.run_report import RunSummary, run_page
from pipeline.rows import IntArray
from tests.support.ledger import FINGERPRINT, SCHEMA, finish, make_corpus, make_folder, receipt

DEPTH, LIMIT, CALIBRATED = 12, 0.02, 8000
FLOPS = FlopCounter(shape_of(BertConfig(num_labels=2)), dict.fromkeys(range(1, DEPTH + 1), "pooled"))
POOL, CALIBRATIONS, EACH = 200_000, 20, 50
"""Rows that nights are drawn from; calibrations, and nights judged by each of them."""
SIZES = (250, 500, 1000, 1500, 2000, 3000, 5000, 10_000, 20_000)
HARD = 0.05


def texts(rows: int, seed: int, *, hard: bool) -> Sample:
    """Draw rows of one of two kinds of text: exits become certain of them from layer to layer, or stay in doubt."""
    random = np.random.default_rng(seed)
    fade = 1 - 0.8 * np.arange(DEPTH - 1)[:, None] / (DEPTH - 1)
    noise = random.normal(size=(DEPTH - 1, rows))
    if hard:
        seen = 0.5 + 0.08 * random.normal(size=rows) + 0.03 * noise
    else:
        seen = random.beta(0.4, 8, size=rows) * fade + 0.05 * fade * noise
    uncertainty = np.minimum(np.abs(seen), 1).astype(np.float32)
    differs = random.random(seen.shape) < 0.5 * uncertainty**1.5
    return replace(synthetic(rows, seed, FLOPS), uncertainty=uncertainty, differs=differs)


def joined(one: Sample, other: Sample) -> Sample:
    """Put two samples one after the other."""
    lengths = np.concatenate([one.lengths, other.lengths])
    uncertainty, differs = (np.hstack([getattr(s, name) for s in (one, other)]) for name in ("uncertainty", "differs"))
    return replace(one, uncertainty=uncertainty, differs=differs, lengths=lengths)


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Rows as they exit at some thresholds, of which nights are drawn."""

    sample: Sample
    choice: Choice

    @cached_property
    def exits(self) -> IntArray:
        speeds = np.array([self.choice.criterion.speed_at(layer) for layer in self.sample.layers])
        return self.sample.first_exits(speeds)

    @cached_property
    def uncertainty(self) -> np.ndarray:
        at_exit = np.minimum(self.exits, DEPTH - 2), np.arange(len(self.sample))
        return np.asarray(np.where(self.exits < DEPTH - 1, self.sample.uncertainty[at_exit], 0.5))

    @cached_property
    def differs(self) -> np.ndarray:
        below = np.vstack([self.sample.differs, np.zeros((1, len(self.sample)), np.bool_)])
        return np.asarray(below[self.exits, np.arange(len(self.sample))])

    @cached_property
    def risk(self) -> np.ndarray:
        """The probability with which each row differs where it exits, as `synthetic` has it."""
        fade = 1 - 0.8 * self.exits / (DEPTH - 1)
        return np.where(self.exits < DEPTH - 1, 0.5 * self.uncertainty**1.5 * fade, 0.0)

    @cached_property
    def cells(self) -> IntArray:
        return cells_of(self.exits, self.uncertainty)

    @cached_property
    def length_bins(self) -> IntArray:
        return bins_of(self.sample.lengths, LENGTH_EDGES)

    def night(self, rows: IntArray) -> Totals:
        """Count a night of these rows."""
        return Totals(
            rows_out=len(rows),
            exits=np.bincount(self.exits[rows], minlength=DEPTH).tolist(),
            exit_uncertainty=np.bincount(self.cells[rows], minlength=DEPTH * BINS).tolist(),
            length_histogram=np.bincount(self.length_bins[rows], minlength=len(LENGTH_EDGES) + 1).tolist(),
        )


def guarantee_of(curve: Curve, choice: Choice, sample: Sample, limit: float | None) -> Guarantee:
    reference = reference_of(sample.lengths, np.zeros(len(sample), np.bool_), np.linspace(0, 1, len(sample)))
    return Guarantee(
        limits=Limits(max_disagreement=limit),
        exits=tuple(choice.exits),
        reference=reference,
        risks=curve.risks_at(choice.point),
    )


DEEP, RISKY, KIND, FAST = "deepest", "riskiest", "another kind of text", "another kind of text, 10x fewer FLOPs"


def drawing(pool: Pool, kind: str) -> Callable[[np.random.Generator, int, float], IntArray]:
    """Return what draws rows of a pool, of which a fraction is hard, of this kind: so many times HARD."""
    if kind in (KIND, FAST):
        hard = np.arange(len(pool.sample)) >= POOL
    else:  # those that go deepest, or are riskiest where they exit
        ranked = pool.exits + np.random.default_rng(0).random(len(pool.exits)) if kind == DEEP else pool.risk
        hard = ranked > np.quantile(ranked, 1 - HARD)
    those, others = np.flatnonzero(hard), np.flatnonzero(~hard)

    def draw(random: np.random.Generator, rows: int, times: float) -> IntArray:
        count = random.binomial(rows, times * HARD)
        return np.concatenate([random.choice(those, count), random.choice(others, rows - count)])

    return draw


def calibrations(kind: str) -> Iterator[tuple[Pool, Guarantee]]:
    """Calibrate on samples of which 5 % are hard, and take rows of which more may be."""
    hard, two = int(HARD * CALIBRATED), kind in (KIND, FAST)
    rows = joined(texts(POOL, 1, hard=False), texts(POOL // 4, 2, hard=True)) if two else synthetic(POOL, 1, FLOPS)
    for number in range(CALIBRATIONS):
        sample = synthetic(CALIBRATED, 100 + number, FLOPS)
        if two:
            easy = texts(CALIBRATED - hard, 100 + number, hard=False)
            sample = joined(easy, texts(hard, 200 + number, hard=True))
        curve = fit_curve(sample, CRITERION, number)
        choice = curve.at_speedup(10) if kind == FAST else curve.within(LIMIT, CONFIDENCE)
        yield Pool(sample=rows, choice=choice), guarantee_of(curve, choice, sample, None if kind == FAST else LIMIT)


def judged(pool: Pool, guarantee: Guarantee, rows: IntArray) -> AuditResult:
    return judge(pool.night(rows), guarantee, [Night(rows=len(rows))])


def power() -> None:
    """Print how often what alarms, by kind of hard rows and number of rows."""
    random = np.random.default_rng(0)
    names = ("expected disagreement", "hard rows", "exits")
    print("| 5 % that become 10 % | rows | alarm | expected disagreement | hard rows | PSI of exits | watch or alarm |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    found: dict[tuple[str, float, int], list[AuditResult]] = {}
    for kind in (DEEP, RISKY, KIND, FAST):
        truths = []
        for pool, guarantee in calibrations(kind):
            draw = drawing(pool, kind)
            truths.append([pool.differs[draw(random, POOL, times)].mean() for times in (1.0, 2.0)])
            for times in (1.0, 2.0):
                for size in SIZES:
                    nights = found.setdefault((kind, times, size), [])
                    nights += [judged(pool, guarantee, draw(random, size, times)) for _ in range(EACH)]
        for size in SIZES:
            nights = found[kind, 2.0, size]
            by = [np.mean([n.drift[name].state == "alarm" for n in nights if name in n.drift]) for name in names]
            looked = np.mean([any(s.state != "ok" for s in n.drift.values()) for n in nights])
            cells = [f"{np.mean([bool(n.alarms) for n in nights]):.1%}", *(f"{b:.1%}" for b in by), f"{looked:.1%}"]
            print(f"| {kind} | {size:,} | {' | '.join(cells)} |", flush=True)
        true = np.mean(truths, axis=0)
        last = [[n.expected.expected for n in found[kind, times, SIZES[-1]] if n.expected] for times in (1.0, 2.0)]
        guess = [float(np.mean(each)) for each in last]
        print(f"{kind}: {true[0]:.3%} differ, then {true[1]:.3%}; expected {guess[0]:.3%}, then {guess[1]:.3%}")
    for size in SIZES:
        nights = [
            night for (_, times, rows), group in found.items() if times == 1.0 and rows == size for night in group
        ]
        states = [{signal.state for signal in night.drift.values()} for night in nights]
        counts = [f"{sum(state in seen for seen in states)} of {len(nights):,}" for state in ("alarm", "watch")]
        print(f"| unchanged | {size:,} | {' | '.join(counts)} |", flush=True)


def ten() -> None:
    """Judge ten resampled ordinary nights of 20,000 rows, then one with twice as many hard rows."""
    print("| hard rows | night | expected | at most (95 %) | calibration | hard rows | highest PSI | alarms |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for kind in (KIND, FAST):
        random, (pool, guarantee) = np.random.default_rng(1), next(calibrations(kind))
        draw = drawing(pool, kind)
        for number in range(1, 12):
            result = judged(pool, guarantee, draw(random, 20_000, 2.0 if number == 11 else 1.0))
            expected, hard = result.expected, result.hard
            assert expected is not None
            assert hard is not None
            cells = [kind, "5 % are 10 %" if number == 11 else f"ordinary {number}"]
            cells += [f"{expected.expected:.3%}", f"{expected.at_most:.3%}", f"{expected.calibration:.3%}"]
            cells += [f"{hard.calibration:.1%} to {hard.now:.1%}", f"{max(s.psi for s in result.signals):.3f}"]
            moved = "; ".join(f"{alarm}: {result.drift[alarm].moved}" for alarm in result.alarms)
            print(f"| {' | '.join(cells)} | {moved} |", flush=True)


NIGHT_ROWS, AUDITED, CHANGED = 4000, 200, 20
LABELS = ("good", "bad", "neither")


def night_facts(pool: Pool, rows: IntArray, random: np.random.Generator, *, late: bool) -> Mapping[str, object]:
    """Count a night as the actors would: exits, cells, lengths, an audit, classes and scores."""
    totals, audited = pool.night(rows), random.choice(rows, AUDITED)
    classes = random.multinomial(len(rows), (0.55, 0.38, 0.07) if late else (0.55, 0.43, 0.02))
    scores = np.minimum((1 - pool.uncertainty[rows] / 2) * SCORE_BINS, SCORE_BINS - 1).astype(np.int64)
    lengths = pool.sample.lengths[rows]
    spent = pool.sample.flops.rows(lengths, pool.exits[rows] + 1).sum()
    names = ("exits", "exit_uncertainty", "length_histogram")
    return {name: getattr(totals, name) for name in names} | {
        "audited": AUDITED,
        "differing": int(pool.differs[audited].sum()),
        "label_counts": classes.tolist(),
        "score_histogram": np.bincount(scores, minlength=SCORE_BINS).tolist(),
        "flops": float(spent),
        "flops_full_depth": float(pool.sample.flops.full_depth(lengths).sum()),
    }


def nights(output: Path) -> None:
    """Publish thirty nights, of which hard rows are twice as many from the twentieth on, and write the page of the last one."""
    random, location = np.random.default_rng(2), str(output.resolve())
    pool, guarantee = next(calibrations(KIND))
    draw, bins = drawing(pool, KIND), PredictionBins.of(["label", "score"], LABELS)
    names = tuple(f"night-{number:02}.txt" for number in range(1, 31))
    corpus, folder = make_corpus(location, names), make_folder(location)
    for number in range(len(names)):
        with Ledger(folder, FINGERPRINT) as ledger:
            ledger.begin(SCHEMA)
            rows = draw(random, NIGHT_ROWS, 2.0 if number >= CHANGED else 1.0)
            made = receipt(corpus, number, 0, NIGHT_ROWS + 1, last=True)
            finish(ledger, replace(made, **night_facts(pool, rows, random, late=number >= CHANGED)))  # type: ignore[arg-type]
            ledger.flush()
            compared, tonight = ledger.compare(bins), ledger.unpublished()
            result = judge(tonight, guarantee, ledger.nights(), compared)
            totals = ledger.totals()
            ledger.publish(60.0, result.to_json(), bins)
        _dated(Path(folder), f"2026-{10 + number // 30}-{number % 30 + 1:02}T02:13:20Z")
    _write_page(folder, totals, tonight, result, compared)
    print(f"{folder}/_report.html")


def _dated(folder: Path, published: str) -> None:
    """Give the newest night of a manifest the date of the simulation."""
    path = folder / "_manifest.json"
    facts = json.loads(path.read_text())
    facts["published"] = facts["nights"][-1]["published"] = published
    path.write_text(json.dumps(facts, indent=1))


def _write_page(folder: str, totals: Totals, tonight: Totals, result: AuditResult, compared: Comparison) -> None:
    page = run_page(
        RunSummary(
            folder=folder, fingerprint=FINGERPRINT, files=1, input_bytes=500_000, seconds=60.0, totals=totals, fresh=tonight,
            timeline=Timeline(), audit=result, predictions=compared,
        )
    )  # fmt: skip
    Path(folder, "_report.html").write_text(page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("power", "ten", "nights"))
    parser.add_argument("--output", type=Path, help="folder for the nights")
    args = parser.parse_args()
    steps: dict[str, Callable[[], None]] = {"power": power, "ten": ten, "nights": partial(nights, args.output)}
    steps[args.what]()


if __name__ == "__main__":
    main()
