#!/usr/bin/env python
"""Make the tables of README.md from the models that run.py trained: thresholds chosen on dev rows, figures from test rows.

python docs/results/papers/tables.py --work papers > tables.md
"""

import argparse
import json
import pickle
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np
from scipy.stats import spearmanr

from jobs.work import loading
from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.corpus.chunks import Chunk
from pipeline.corpus.columns import Columns
from pipeline.corpus.labelled import label_reader, read_texts, tokenize_texts
from pipeline.engine.config import EngineConfig
from pipeline.engine.loaded import LoadedModel
from pipeline.evaluation.evaluation import Evaluation, OperatingPoint, accuracy_by_uncertainty, cheapest_within

JOBS = Path(__file__).resolve().parents[3] / "jobs"
SETS = ("sst2", "ag_news", "trec", "subj", "qnli", "chnsenticorp", "stsb")
PAIRS = ("qnli", "stsb")
METHODS = {
    "FastBERT": ("soft-attention-0", ("entropy",)),
    "FastBERT's heads, from labels (two-stage)": ("labels-attention-0", ("entropy", "confidence")),
    "DeeBERT (two-stage)": ("labels-pooled-0", ("entropy",)),
    "DeeBERT's heads, from soft labels": ("soft-pooled-0", ("entropy",)),
    "BERxiT, joint": ("joint", ("confidence", "lte")),
    "BERxiT, alternating": ("alternating", ("confidence", "lte")),
    "PABEE": ("joint-depth", ("patience",)),
    "PABEE's patience on joint": ("joint", ("patience",)),
    "PABEE's patience on alternating": ("alternating", ("patience",)),
    "joint, pooled heads": ("joint-pooled", ("confidence",)),
    "joint, pooled heads, 5 epochs at 3e-4": ("joint-pooled-longer", ("confidence",)),
}
DROPS = (0.005, 0.01, 0.03)
OWN_DROPS = (0.0, 0.0025, 0.005)
"""Of accuracy against one's own teacher on dev rows: what is chosen there at the limit loses more elsewhere."""
OWN_SPEEDUPS = {"sst2": (1.6, 2.0, 2.5), "ag_news": (2.2, 3.0, 4.0)}
SHARES = np.linspace(0.3, 0.9, 13)
"""FLOPs, as shares of full depth, at which two curves are compared."""


class Work:
    """Models and data under one folder; every evaluation is made once, and kept with its model."""

    def __init__(self, folder: Path, sets: tuple[str, ...]) -> None:
        self.folder, self.sets = folder, sets

    def there(self, name: str, model: str) -> bool:
        directory = self.folder / name / model
        return (directory / "config.json").exists() and not (directory / "_checkpoint").exists()

    def train(self, name: str, commands: Mapping[str, str]) -> None:
        """Train the models of a set that are not there, each by its command line, without the output, of one of the jobs."""
        for model, line in commands.items():
            if not self.there(name, model):
                words = shlex.split(f"{line} --output {self.folder / name / model}")
                print(f"$ python jobs/{shlex.join(words)}", file=sys.stderr, flush=True)
                subprocess.run([sys.executable, str(JOBS / words[0]), *words[1:]], check=True, stdout=sys.stderr)

    @cache  # noqa: B019 - one object for the whole program
    def evaluation(self, name: str, model: str, split: str) -> Evaluation:
        kept = self.folder / name / model / f"evaluation-{split}.pickle"
        if kept.exists():
            found: Evaluation = pickle.loads(kept.read_bytes())
            return found
        exits_model = self.model(name, model)
        examples = self.examples(name, model, split)
        with LoadedModel(exits_model, EngineConfig()) as loaded:
            made = Evaluation(loaded.model, examples)
        kept.write_bytes(pickle.dumps(made))
        return made

    def model(self, name: str, model: str) -> EarlyExitModel:
        return EarlyExitModel.from_pretrained(str(self.folder / name / model))

    def examples(self, name: str, model: str, split: str) -> Chunk:
        """Return the rows of a split as this model reads them."""
        exits_model = self.model(name, model)
        tokenizer = loading.load_tokenizer(str(self.folder / name / model), exits_model, None)
        columns = Columns(pair="text_pair" if name in PAIRS else None, label="label")
        path = str(self.folder / "data" / f"{name}-{split}.parquet")
        texts = read_texts(path, columns, read_label=label_reader(exits_model.task, None))
        return tokenize_texts(texts, tokenizer, exits_model.labels, task=exits_model.task)

    def chosen(self, name: str, model: str, criterion: str, drop: float) -> tuple[OperatingPoint, float]:
        """Return the point that dev rows choose, on test rows, and the quality of full depth there."""
        found = cheapest_within(self.evaluation(name, model, "dev").curve(criterion), drop).criterion
        test = self.evaluation(name, model, "test")
        return test.at(found), test.full_depth().quality


def training_options(about: str | None, sets: Iterable[str]) -> argparse.Namespace:
    """Read the options of a script that trains models on some of these sets, and prints their tables."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--sets", nargs="+", choices=tuple(sets), default=list(sets))
    parser.add_argument(
        "--trained", action="store_true", help="print the tables of the models that are there, and train none"
    )
    return parser.parse_args()


def table(head: list[str], rows: list[list[str]]) -> None:
    for cells in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(cells) + " |")
    print(flush=True)


def savings(work: Work) -> None:
    print("## What can be saved\n")
    for name in work.sets:
        rows = []
        for method, (model, criteria) in METHODS.items():
            if not work.there(name, model):
                continue
            for criterion in criteria:
                if criterion not in work.evaluation(name, model, "dev").criteria():
                    continue
                cells = [method, criterion, f"{work.evaluation(name, model, 'test').full_depth().quality:.4f}"]
                for drop in DROPS:
                    point, full = work.chosen(name, model, criterion, drop)
                    cells.append(f"{point.flops_speedup:.2f}x ({point.quality - full:+.4f})")
                rows.append(cells)
        if rows:
            print(f"### {name}\n")
            table(["method", "criterion", "full depth", *(f"-{drop:.1%} on dev" for drop in DROPS)], rows)


def layers(work: Work) -> None:
    print("## Every exit on all test rows\n")
    for name in work.sets:
        rows = []
        for method, (model, _criteria) in METHODS.items():
            if work.there(name, model) and "patience" not in method:
                rows.append([method, *(f"{q:.3f}" for q in work.evaluation(name, model, "test").by_layer().values())])
        if rows:
            print(f"### {name}\n")
            table(["method", *map(str, range(1, len(rows[0])))], rows)


def self_distillation(work: Work) -> None:
    print("## Self-distillation against labels: the same heads, equal FLOPs, three seeds\n")
    rows = []
    for name in work.sets:
        gains = {}
        for kind in ("soft", "labels"):
            models = [f"{kind}-attention-{seed}" for seed in range(3) if work.there(name, f"{kind}-attention-{seed}")]
            gains[kind] = [mean_quality(work.evaluation(name, model, "test").curve("entropy")) for model in models]
        if gains["soft"] and gains["labels"]:
            soft, labels = np.mean(gains["soft"]), np.mean(gains["labels"])
            spread = max(np.std(gains["soft"]), np.std(gains["labels"]))
            rows.append(
                [
                    name,
                    str(len(gains["soft"])),
                    f"{soft:.4f}",
                    f"{labels:.4f}",
                    f"{soft - labels:+.4f}",
                    f"{spread:.4f}",
                ]
            )
    table(["set", "seeds", "from soft labels", "from labels", "gain", "deviation of seeds"], rows)


def mean_quality(points: list[OperatingPoint], measure: str = "quality") -> float:
    """Mean quality, or agreement, over SHARES of FLOPs: the best point that costs at most so much."""
    costs = [1 / point.flops_speedup for point in points]
    measured = [getattr(point, measure) for point in points]
    best = [
        max(m for m, cost in zip(measured, costs, strict=True) if cost <= share)
        for share in SHARES
        if share >= min(costs)
    ]
    return float(np.mean(best))


def uncertainty(work: Work) -> None:
    print("## LUHA: rank correlation of uncertainty bins and accuracy, by layer (entropy, test rows)\n")
    rows = []
    for name in work.sets:
        if name == "stsb" or not work.there(name, "soft-attention-0"):
            continue
        evaluation = work.evaluation(name, "soft-attention-0", "test")
        seen = evaluation.recorded.uncertainty(Criterion(name="entropy", speed=0.5))
        cells = [name]
        for place in range(len(seen)):
            middle, share, count = accuracy_by_uncertainty(
                seen[place], evaluation.recorded.answers[place] == evaluation.targets
            )
            full = count >= 10
            cells.append(f"{spearmanr(middle[full], share[full]).statistic:.2f}" if full.sum() > 2 else "-")
        rows.append(cells)
    if rows:
        table(["set", *map(str, range(1, len(rows[0])))], rows)


def own_teacher(work: Work) -> None:
    print("## Bring your own teacher\n")
    rows = []
    for name, model in own_models(work):
        dev = work.evaluation(name, model, "dev")
        at_best = work.evaluation(name, "byo-teacher", "dev").full_depth().quality
        for criterion in ("entropy", "confidence", "patience", "lte"):
            for drop in OWN_DROPS:
                good = [point for point in dev.curve(criterion) if point.quality >= at_best - drop]
                if good:
                    best = max(good, key=lambda point: point.flops_speedup)
                    rows.append(own_row(work, name, model, f"-{drop:.2%}", best))
    own_table("lost on dev", rows)


def own_teacher_at(work: Work) -> None:
    """Print own teachers at thresholds that dev rows give a speed-up for, labels or not."""
    print("## Bring your own teacher, at a speed-up\n")
    rows = []
    for name, model in own_models(work):
        for speedup in OWN_SPEEDUPS[name]:
            fast = [p for p in work.evaluation(name, model, "dev").curve("entropy") if p.flops_speedup >= speedup]
            best = min(fast, key=lambda point: point.flops_speedup)
            rows.append(own_row(work, name, model, f"{speedup:g}x", best))
    own_table("asked", rows)


def own_models(work: Work) -> list[tuple[str, str]]:
    """Return sets and models that learned from one's own teacher."""
    models = [(name, model) for name in OWN_SPEEDUPS for model in ("byo-frozen-attention", "byo-along-attention")]
    return [(name, model) for name, model in models if name in work.sets and work.there(name, model)]


def own_row(work: Work, name: str, model: str, asked: str, chosen: OperatingPoint) -> list[str]:
    """Lay out what a point that dev rows chose does on test rows, beside the teacher."""
    teacher = work.evaluation(name, "byo-teacher", "test").full_depth().quality
    point = work.evaluation(name, model, "test").at(chosen.criterion)
    cells = [f"{point.quality:.4f}", f"{point.quality - teacher:+.4f}", f"{point.flops_speedup:.2f}x"]
    return [name, model, asked, chosen.criterion.describe(), f"{teacher:.4f}", *cells]


def own_table(asked: str, rows: list[list[str]]) -> None:
    if rows:
        table(["set", "model", asked, "chosen on dev", "teacher, test", "test", "lost", "fewer FLOPs"], rows)


def two_workers(work: Work) -> None:
    if not work.there("trec", "two-workers") or "trec" not in work.sets:
        return
    print("## One worker and two: mean loss, trec, soft labels\n")
    losses = {}
    for model in ("one-worker", "two-workers"):
        lines = map(json.loads, (work.folder / "trec" / model / "training.jsonl").read_text().splitlines())
        losses[model] = [line["loss"] for line in lines if "dev" in line]
    pairs = zip(*losses.values(), strict=True)
    rows = [[str(epoch), *(f"{loss:.4f}" for loss in both)] for epoch, both in enumerate(pairs, start=1)]
    table(["epoch", "one worker", "two workers"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    args = parser.parse_args()
    work = Work(args.work, tuple(args.sets))
    for part in (own_teacher, own_teacher_at, savings, layers, self_distillation, uncertainty, two_workers):
        part(work)


if __name__ == "__main__":
    main()
