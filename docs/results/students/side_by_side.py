#!/usr/bin/env python
"""Print and draw students beside early exits, from the models of better-exits/exits.py: the table and figure of README.md.

python docs/results/students/side_by_side.py --work better --figure students.svg
"""

import argparse
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np

from docs.results.papers.tables import Work, table
from models.exits.criterion import Criterion
from pipeline.benchmark.measure import System, measure
from pipeline.benchmark.workload import Workload
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.evaluation.evaluation import OperatingPoint
from pipeline.reports.palette import CYCLE

SETS = ("trec", "subj", "sst2", "ag_news", "qnli")
EXITS = {
    "exits, frozen": "soft-0",
    "exits, trained along": "along-0",
    "exits on the student of 3": "student-3-exits",
    "exits": "fastbert",
}
STUDENTS = {f"student of {layers}": f"student-{layers}" for layers in (6, 3, 2, 1)}
"""Models by what they are called; those that a folder lacks are left out."""
ROUNDS = 3


@dataclass(frozen=True)
class Entry:
    """One model under one criterion: what it costs and how good it is on test rows."""

    model: str
    criterion: Criterion
    flops: float
    """As a fraction of the teacher's."""
    quality: float


def within(work: Work, name: str, model: str, budget: float) -> Entry | None:
    """Choose the threshold that is best on dev rows and costs at most this fraction of the teacher's FLOPs there."""
    points = [point for point in beside(work, name, model, "dev", None) if 1 / point.flops_speedup <= budget]
    if not points:
        return None
    criterion = max(points, key=lambda point: point.quality).criterion
    (point,) = beside(work, name, model, "test", criterion)
    return Entry(model, criterion, 1 / point.flops_speedup, point.quality)


def beside(work: Work, name: str, model: str, split: str, criterion: Criterion | None) -> list[OperatingPoint]:
    """Return the points of a model, or the one of a criterion, with FLOPs beside the teacher's full depth."""
    evaluation, teacher = work.evaluation(name, model, split), work.evaluation(name, "teacher", split)
    points = evaluation.curve("entropy") if criterion is None else [evaluation.at(criterion)]
    return evaluation.beside(teacher, points)


def entries(work: Work, name: str) -> dict[str, Entry]:
    """Return the teacher, every student, and every model with exits at each student's FLOPs."""
    found = {
        "teacher": Entry("teacher", Criterion(), 1.0, work.evaluation(name, "teacher", "test").full_depth().quality)
    }
    for label, model in STUDENTS.items():
        if not work.there(name, model):
            continue
        (point,) = beside(work, name, model, "test", Criterion())
        found[label] = Entry(model, Criterion(), 1 / point.flops_speedup, point.quality)
        for way, exits in EXITS.items():
            entry = within(work, name, exits, found[label].flops) if work.there(name, exits) else None
            if entry is not None:
                found[f"{way}, as cheap as the {label}"] = entry
    return found


def seconds(work: Work, name: str, found: dict[str, Entry]) -> dict[str, float]:
    """Measure all of a set's entries in turns on its test rows, as fractions of the teacher's time: medians of the rounds."""
    rows = work.examples(name, "teacher", "test").rows
    job = Workload(rows=rows, exit_plan=np.zeros(len(rows), np.int64))
    loaded = {
        model: LoadedModel(work.model(name, model), EngineConfig()) for model in {e.model for e in found.values()}
    }
    engines = {
        label: Engine(loaded[entry.model], EngineConfig(criterion=entry.criterion)) for label, entry in found.items()
    }
    systems = {label: System(run=partial(run_engine, engine), work=job) for label, engine in engines.items()}
    timings = measure(systems, ROUNDS, lambda: None, lambda _line: None)
    for each in loaded.values():
        each.close()
    return {label: 1 / timing.speedup_over(timings["teacher"]) for label, timing in timings.items()}


def run_engine(engine: Engine, work: Workload) -> object:
    return engine.run(work.rows)


def draw(work: Work, found: dict[str, dict[str, Entry]], path: Path) -> None:
    """Draw quality over FLOPs for every set: curves of the models with exits, dots of the students and the teacher."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(found), 3.6), layout="constrained")
    for axes, (name, of_set) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        for color, (way, model) in zip(CYCLE, EXITS.items(), strict=False):
            if work.there(name, model):
                points = beside(work, name, model, "test", None)
                axes.plot([1 / p.flops_speedup for p in points], [p.quality for p in points], color=color, label=way)
        dots = [of_set[label] for label in ("teacher", *STUDENTS) if label in of_set]
        axes.plot([e.flops for e in dots], [e.quality for e in dots], "o", color=CYCLE[3], label="teacher, students")
        best = of_set["teacher"].quality
        axes.set(title=name, xlabel="FLOPs, of the teacher's", ylim=(best - 0.12, best + 0.02), xlim=(0, 1.1))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("accuracy on test rows")
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    work = Work(args.work, tuple(args.sets))
    found = {name: entries(work, name) for name in args.sets}
    for name, of_set in found.items():
        took = seconds(work, name, of_set)
        print(f"### {name}\n")
        cells = [
            [label, f"{entry.flops:.2f}", f"{took[label]:.2f}", f"{entry.quality:.4f}"]
            for label, entry in of_set.items()
        ]
        table(["model", "FLOPs", "time", "accuracy"], cells)
    if args.figure:
        draw(work, found, args.figure)


if __name__ == "__main__":
    main()
