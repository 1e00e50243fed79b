#!/usr/bin/env python
"""The measurements of docs/results/guarantees/README.md that run the engine or a job; after guarantees.py's prepare and record.

python docs/results/guarantees/runs.py wall|forced --work W                speed-ups in time: nothing else should run
python docs/results/guarantees/runs.py drift|publish --data $DATA --work W   nights of other texts, audited
"""

import argparse
import copy
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np
import pandas as pd
import torch
from transformers import BertConfig

from docs.results.guarantees.run import CONFIDENCE, CRITERION, Step, head, main, pools, synthetic, tokenize
from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.benchmark.measure import System, hardware, measure, time_criteria
from pipeline.benchmark.workload import Workload
from pipeline.calibration.audit import AuditSpec, audit
from pipeline.calibration.curve import Calibration, Curve, WallClock
from pipeline.calibration.fit import fit_curve
from pipeline.calibration.limits.limits import Limits
from pipeline.calibration.thresholds import Sample
from pipeline.calibration.timing import TIMED_ROUNDS, time_curve
from pipeline.calibration.verdict import Guarantee, judge
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.engine.texts.engine import TextEngine
from pipeline.engine.texts.rows import TextRows
from pipeline.histograms import length_histogram
from pipeline.nights import Night
from pipeline.output.totals import Totals
from pipeline.rows import TokenRows

SIGNALS = ("exits", "length", "truncation", "uncertainty")


def wall(args: argparse.Namespace) -> None:
    """Ask for speed-ups in time, measured on some rows, and time other rows, in turns with full depth."""
    head("rows", "asked", "FLOPs that this machine needs", "faster on other rows", "fewer FLOPs there")
    for name, sample in pools(args).items():
        model, directory = EarlyExitModel.from_pretrained(args.work / name), args.work / name
        pool = pd.read_parquet(args.work / "data" / f"{name}-pool.parquet")
        curve = fit_curve(sample.take(np.arange(len(sample) // 2)), CRITERION)
        first, second = (tokenize(directory, model, pool[start : start + 3000]).rows for start in (0, len(pool) // 2))
        clock = time_curve(str(directory), curve, first, "auto", "cpu")
        reached = [asked for asked in (1.5, 2.0, 3.0) if asked <= max(clock.time_speedups)]
        criteria = [curve.at_speedup(clock.flops_speedup_for(asked)).criterion for asked in reached]
        full, *timings = time_criteria(str(directory), [Criterion(), *criteria], second, "auto", "cpu", TIMED_ROUNDS)
        for asked, criterion, timing in zip(reached, criteria, timings, strict=True):
            engine = Engine(LoadedModel(EarlyExitModel.from_pretrained(directory), EngineConfig(criterion=criterion)))
            spent = engine.flops.rows(second.lengths, engine.run(second).exit_layers).sum()
            fewer = engine.flops.full_depth(second.lengths).sum() / spent
            cells = f"{clock.flops_speedup_for(asked):.2f}x | {timing.speedup_over(full):.2f}x | {fewer:.2f}x"
            print(f"| {name}, {clock.hardware} | {asked:g}x | {cells} |", flush=True)


def exit_plan(sample: Sample, criterion: Criterion) -> np.ndarray:
    """Where rows leave: [B]."""
    speeds = np.array([criterion.speed_at(layer) for layer in sample.layers])
    leaves = np.vstack([sample.would_exit(speeds), np.ones((1, len(sample)), np.bool_)])
    return np.array([*sample.layers, sample.depth])[leaves.argmax(0)]


def forced(_args: argparse.Namespace) -> None:
    """Measure the shape of BERT-base with exits by plan: uncertainties are drawn, weights do not matter."""
    torch.manual_seed(0)
    model = EarlyExitModel(BertConfig(num_labels=2))
    model.add_exits("pooled")
    known, timed, other, many = (
        synthetic(rows, seed, model.flops) for rows, seed in ((5000, 0), (600, 4), (600, 1), (20_000, 3))
    )
    curve, asked, points = fit_curve(known, CRITERION), (1.5, 2.0, 3.0), (1.0, 1.5, 2.0, 3.0, 4.0)
    clock = WallClock(
        hardware=hardware("cpu"), flops_speedups=[*points], time_speedups=_planned_speedups(model, curve, points, timed)
    )
    needed = [clock.flops_speedup_for(speedup) for speedup in asked]
    faster = _planned_speedups(model, curve, (1.0, *asked, *needed), other)[1:]
    head("rows", "asked", "in", "fewer FLOPs on 20,000 other rows", "fewer FLOPs on the 600 rows timed", "faster there")
    for unit, speedups, took in (("FLOPs", asked, faster[:3]), ("time", needed, faster[3:])):
        for wanted, speedup, found in zip(asked, speedups, took, strict=True):
            criterion = curve.at_speedup(speedup).criterion
            fewer = [
                model.flops.full_depth(sample.lengths).sum()
                / model.flops.rows(sample.lengths, exit_plan(sample, criterion)).sum()
                for sample in (many, other)
            ]
            print(f"| BERT-base shape | {wanted:g}x | {unit} | {fewer[0]:.2f}x | {fewer[1]:.2f}x | {found:.2f}x |")


def _planned_speedups(model: EarlyExitModel, curve: Curve, speedups: Sequence[float], sample: Sample) -> list[float]:
    """Time random tokens of a sample's lengths that leave as its uncertainties say; the first speed-up counts as 1."""
    random = np.random.default_rng(2)
    rows = TokenRows.from_lists([random.integers(1000, 30_000, length).tolist() for length in sample.lengths])
    systems, engine = {}, Engine(LoadedModel(copy.deepcopy(model), EngineConfig()))
    for place, speedup in enumerate(speedups):
        criterion = curve.at_speedup(speedup).criterion
        work = Workload(rows=rows, exit_plan=exit_plan(sample, criterion))
        systems[str(place)] = System(run=partial(_planned, engine.with_criterion(criterion)), work=work)
    timings = list(measure(systems, TIMED_ROUNDS, lambda: None, lambda _line: None).values())
    return [timing.speedup_over(timings[0]) for timing in timings]


def _planned(engine: Engine, work: Workload) -> object:
    return engine.run(work.rows, work.rule)


def sentences(args: argparse.Namespace) -> dict[str, pd.DataFrame]:
    """Read the unlabelled texts, shuffled."""
    texts = {}
    for source in ("movie", "news"):
        files = sorted((args.data / f"unlabeled_{source}").glob("part-*"))
        texts[source] = pd.concat([pd.read_parquet(file) for file in files])[["id", "text"]].sample(
            frac=1, random_state=0
        )
    return texts


def drift(args: argparse.Namespace) -> None:
    """Calibrate the SST-2 model on movie sentences; audit ten nights of other movie sentences, then one of newswire."""
    texts = sentences(args)
    directory = args.work / "sst2-movie"
    shutil.copytree(args.work / "sst2", directory, dirs_exist_ok=True)
    texts["movie"][:8000].to_parquet(args.work / "data" / "movie-sample.parquet", index=False)
    job("calibrate", "--model", directory, "--data", args.work / "data" / "movie-sample.parquet", "--no-timing")
    calibration = Calibration.load(directory)
    choice = calibration.curve.within(0.02, CONFIDENCE)
    model = EarlyExitModel.from_pretrained(directory)
    loaded = LoadedModel(EarlyExitModel.from_pretrained(directory), EngineConfig(criterion=choice.criterion))
    engine = TextEngine(Engine(loaded))
    full_depth = engine.with_criterion(choice.criterion.at_full_depth())
    spec = AuditSpec(fraction=0.25, uncertainty_edges=tuple(calibration.reference.uncertainty_edges))
    guarantee = Guarantee(
        limits=Limits(max_disagreement=0.02), exits=tuple(choice.exits), reference=calibration.reference
    )
    head("night", "audited", "differ", "bounds", "verdict", *(f"PSI {name}" for name in SIGNALS), "alarms")
    nights = [(f"movie {night}", texts["movie"][8000 + 1500 * night :][:1500]) for night in range(10)]
    for name, night in [*nights, ("newswire", texts["news"][:1500])]:
        tokens = tokenize(directory, model, night)
        rows = TextRows.whole(tokens.rows)
        predictions = engine.run(rows).predictions
        totals = Totals(
            rows_out=len(night),
            truncated=int(tokens.truncated.sum()),
            exits=np.bincount(predictions.exit_layers, minlength=model.shape.layers + 1)[1:].tolist(),
            length_histogram=length_histogram(tokens.rows.lengths),
            **audit(engine, full_depth, spec, {name: len(night)}, rows, predictions).get(name, {}),
        )
        found = judge(totals, guarantee, [Night(audited=totals.audited, differing=totals.differing)])
        told = {signal.name: signal.psi for signal in found.signals}
        cells = [
            name,
            f"{found.rows}",
            f"{found.disagreement:.2%}",
            f"{found.at_least:.2%} to {found.at_most:.2%}",
            found.verdict,
        ]
        print(
            f"| {' | '.join([*cells, *(f'{told[name]:.3f}' for name in SIGNALS)])} | {' '.join(found.alarms)} |",
            flush=True,
        )


def publish(args: argparse.Namespace) -> None:
    """Run the two nights by classify.py itself: one of movie sentences, one of newswire, into one folder; after `drift`."""
    texts, directory = sentences(args), args.work / "sst2-movie"
    corpus, out = args.work / "nights", args.work / "nights-out"
    for folder in (corpus, out):
        shutil.rmtree(folder, ignore_errors=True)
    corpus.mkdir()
    for name, night in (("1-movie", texts["movie"][8000:9500]), ("2-news", texts["news"][:1500])):
        night.to_parquet(corpus / f"{name}.parquet", index=False)
        asked = ["--max-disagreement", "2%", "--audit", "10%", "--audit-fail", "--price-per-hour", "1"]
        job("classify", "--model", directory, "--input", corpus, "--output", out, "--id-column", "id", *asked)


def job(name: str, *options: object) -> None:
    """Run a job and show what it says."""
    command = [sys.executable, str(Path(__file__).resolve().parents[3] / "jobs" / f"{name}.py"), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True)
    print(
        f"\n{name}.py {' '.join(map(str, options))}: exit code {done.returncode}\n{done.stdout}{done.stderr}",
        flush=True,
    )


if __name__ == "__main__":
    steps: dict[str, Step] = {"wall": wall, "forced": forced, "drift": drift, "publish": publish}
    main(__doc__ or "", steps)
