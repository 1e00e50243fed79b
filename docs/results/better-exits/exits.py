#!/usr/bin/env python
"""Train the models of README.md by the project's own jobs, models that are there left alone, and print its tables.

python docs/results/better-exits/exits.py --data $DATA --backbone all-MiniLM-L6-v2 --work better
"""

import sys
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np
import pandas as pd

from docs.results.papers.run import NAMES as CLASSES
from docs.results.papers.tables import Work, mean_quality, table, training_options
from models.exits.criterion import Criterion
from pipeline.calibration.guarantees import loss_bound
from pipeline.evaluation.evaluation import Evaluation, OperatingPoint
from pipeline.rows import FloatArray

SETS = {"trec": "questions", "subj": "movie", "sst2": "movie", "ag_news": "news", "qnli": "pairs"}
"""Sets, and the unlabelled text that lies beside the training text of each."""
TRAIN_ROWS = 6_000
TEXT_ROWS = 6_000
DEV_ROWS = {"trec": 500, "subj": 1_000, "sst2": 2_000, "ag_news": 2_000, "qnli": 463}
CALIBRATION_ROWS = 6_000
TEST = {"trec": "test", "subj": "dev", "sst2": "dev", "ag_news": "test", "qnli": "dev"}
TEST_ROWS = 3_000
TEACHER_EPOCHS = {"trec": 3}
VARIANTS = {
    "labels": "--label-column label --label-share 1 --epochs 4",
    "soft": "--epochs 2",
    "both": "--label-column label --label-share 0.5 --epochs 2",
    "softer": "--temperature 2 --epochs 2",
    "longer": "--epochs 5",
    "small-batches": "--batch-rows 32 --epochs 2",
    "pooled": "--head pooled --epochs 2",
    "along": "--train-backbone joint --epochs 2",
    "along-both": "--train-backbone joint --label-column label --label-share 0.5 --epochs 2",
}
"""Exits on one teacher, by their options; attention heads where these name no other. All read the same text, but for `labels`,
which reads the training text alone, and twice as often, so that it sees as many rows."""
THREE_SEEDS = ("labels", "soft", "both")
SEEDS = (0, 1, 2)
STUDENTS = (3, 2, 1)
DROPS = (0.0025, 0.005, 0.01)
DIFFERING = 0.02
KEPT = 0.005
CONFIDENCES = (0.5, 0.8, 0.95)


def prepare(data: Path, work: Path) -> None:
    """Cut the sets into train, dev (thresholds and epochs are chosen on it) and test, and lay unlabelled text beside train.

    Where rows are left, thresholds are chosen on some of them too (`kept`): of sst2, whose training rows are phrases and whose
    test rows are sentences, on rows that end as sentences do.
    """
    if (work / "data" / f"{[*SETS][-1]}-calibration.parquet").exists():
        return
    (work / "data").mkdir(parents=True, exist_ok=True)

    def folder(name: str, split: str) -> pd.DataFrame:
        return pd.concat(pd.read_parquet(file) for file in sorted((data / name).glob(f"{split}*.parquet")))

    pairs, qnli = folder("qnli", "test_unlabeled"), folder("qnli", "train")
    texts = {
        "movie": folder("unlabeled_movie", "part-00000")[["text"]],
        "news": folder("unlabeled_news", "part")[["text"]],
        "pairs": pairs[["text", "text_pair"]],
        "questions": pd.concat([pairs, qnli])[["text"]].drop_duplicates(),
    }
    for name, more in SETS.items():
        rows = pd.read_parquet(data / name / "train.parquet").sample(frac=1, random_state=0)
        dev, train = rows[: DEV_ROWS[name]], rows[DEV_ROWS[name] :][:TRAIN_ROWS]
        test = pd.read_parquet(data / name / f"{TEST[name]}.parquet").sample(frac=1, random_state=0)[:TEST_ROWS]
        rest = rows[DEV_ROWS[name] + len(train) :]
        if name == "sst2":
            rest = rest[rest["text"].str.strip().str.endswith((".", "!", "?"))]
        calibration = rest[:CALIBRATION_ROWS] if len(rest) else dev
        for part, cut in {"dev": dev, "train": train, "calibration": calibration, "test": test}.items():
            cut.to_parquet(work / "data" / f"{name}-{part}.parquet", index=False)
        beside = work / "data" / f"{name}-text"
        beside.mkdir(exist_ok=True)
        columns = [column for column in train if column != "id"]
        train[columns].to_parquet(beside / "a.parquet", index=False)
        unlabelled = texts[more].sample(min(TEXT_ROWS, len(texts[more])), random_state=0)
        unlabelled.assign(label=pd.array([None] * len(unlabelled), dtype="Int64")).to_parquet(
            beside / "b.parquet", index=False
        )


def commands(name: str, backbone: str, work: Path, variants: dict[str, str], seeds: tuple[int, ...]) -> dict[str, str]:
    """Return the command line of each model of a set, without its output: a teacher, and the exits of each variant on it."""
    data, pair = work / "data", " --pair-column text_pair" if name == "qnli" else ""
    lines = {
        "teacher": f"finetune.py --backbone {backbone} --train {data}/{name}-train.parquet --dev {data}/{name}-dev.parquet "
        f"--class-names {CLASSES[name]}{pair} --head attention --epochs {TEACHER_EPOCHS.get(name, 2)} --batch-rows 64"
    }
    for (variant, options), seed in product(variants.items(), seeds):
        text = f"{name}-train.parquet" if variant == "labels" else f"{name}-text"
        head = "" if "--head" in options else " --head attention"
        lines[f"{variant}-{seed}"] = (
            f"distill.py --model {work}/{name}/teacher --input {data}/{text}{pair}{head} --seed {seed} {options}"
        )
    return lines


def students(name: str, work: Path) -> dict[str, str]:
    """Return the command lines of students from the same text and as many epochs, and of exits on the largest of them."""
    text = f"--input {work}/data/{name}-text --epochs 2" + (" --pair-column text_pair" if name == "qnli" else "")
    lines = {
        f"student-{layers}": f"distill.py --model {work}/{name}/teacher {text} --layers {layers}" for layers in STUDENTS
    }
    lines["student-3-exits"] = f"distill.py --model {work}/{name}/student-3 {text} --head attention"
    return lines


def main() -> None:
    args = training_options(__doc__, SETS)
    work = Work(args.work, tuple(args.sets))
    if not args.trained:
        prepare(args.data, args.work)
        others = {name: options for name, options in VARIANTS.items() if name not in THREE_SEEDS}
        main_ones = {name: VARIANTS[name] for name in THREE_SEEDS}
        for name in args.sets:  # what matters most first
            work.train(name, commands(name, args.backbone, args.work, main_ones, SEEDS[:1]))
        for name in args.sets:
            work.train(name, students(name, args.work))
        for name in args.sets:
            work.train(name, commands(name, args.backbone, args.work, main_ones, SEEDS))
        for name in args.sets:
            work.train(name, commands(name, args.backbone, args.work, others, SEEDS[:1]))
    print_tables(work)


def print_tables(work: Work) -> None:
    """Print quality at equal FLOPs, and what is saved at losses that dev rows choose, on test rows."""
    equal, saved, layers = [], [], []
    for name, variant in product(work.sets, VARIANTS):
        models = [f"{variant}-{seed}" for seed in SEEDS if work.there(name, f"{variant}-{seed}")]
        if not models:
            continue
        tests = [work.evaluation(name, model, "test") for model in models]
        cells = [name, variant, str(len(models))]
        for measure in ("quality", "agreement"):
            means = [mean_quality(test.curve("entropy"), measure) for test in tests]
            cells += [f"{np.mean(means):.4f}", f"{np.std(means):.4f}"]
        equal.append(cells)
        cells = [name, variant, f"{np.mean([test.full_depth().quality for test in tests]):.4f}"]
        for drop in DROPS:
            chosen = [work.chosen(name, model, "entropy", drop) for model in models]
            speedup = 1 / np.mean([1 / point.flops_speedup for point, _ in chosen])
            loss = np.mean([point.quality - full for point, full in chosen])
            cells.append(f"{speedup:.2f}x ({loss:+.4f})")
        saved.append(cells)
        by_layer = np.mean([list(test.by_layer().values()) for test in tests], axis=0)
        layers.append([name, variant, *(f"{quality:.3f}" for quality in by_layer)])
    print(
        "## Quality, and agreement with full depth, at equal FLOPs, mean over 30 to 90 % of full depth's, on test rows\n"
    )
    table(["set", "exits", "seeds", "quality", "deviation of seeds", "agreement", "deviation of seeds"], equal)
    print("## Saved at a loss chosen on dev, on test rows\n")
    table(["set", "exits", "full depth", *(f"-{drop:.2%} on dev" for drop in DROPS)], saved)
    print("## Every exit, on test rows\n")
    table(["set", "exits", *map(str, range(1, 7))], layers)
    print(
        f"## Saved where rows show with a confidence that at most {KEPT:.1%} is lost, and what is lost on test rows\n"
    )
    table(["set", "exits", "rows", *(f"{confidence:.0%}" for confidence in CONFIDENCES)], kept(work))
    print(f"## Fewer FLOPs where {DIFFERING:.0%} of answers may differ on dev, on test rows\n")
    table(["set", "exits", "from own full depth", "from the teacher"], disagreements(work))


def kept(work: Work) -> list[list[str]]:
    """Return what is saved at a loss that `loss_bound` shows on calibration rows, threshold by threshold from the safe end."""
    rows = []
    for name, variant in product(work.sets, VARIANTS):
        models = [f"{variant}-{seed}" for seed in SEEDS if work.there(name, f"{variant}-{seed}")]
        if not models:
            continue
        cells = [name, variant, f"{len(work.evaluation(name, models[0], 'calibration').targets):,}"]
        for confidence in CONFIDENCES:
            points = [shown(work, name, model, confidence) for model in models]
            speedup = 1 / np.mean([1 / point.flops_speedup for point, _ in points])
            losses = [point.quality - full for point, full in points]
            cells.append(f"{speedup:.2f}x ({', '.join(f'{loss:+.4f}' for loss in losses)})")
        rows.append(cells)
    return rows


def shown(work: Work, name: str, model: str, confidence: float) -> tuple[OperatingPoint, float]:
    """Return the fastest point that is shown to lose at most KEPT, on test rows, and the quality of full depth there."""
    rows, test = (work.evaluation(name, model, split) for split in ("calibration", "test"))
    right, found = rows.correct(-1), Criterion()
    for point in sorted(rows.curve("entropy"), key=lambda each: each.flops_speedup):
        now = answers_at(rows, point.criterion) == rows.targets
        if loss_bound(int((right & ~now).sum()), int((now & ~right).sum()), len(right), confidence) > KEPT:
            break
        found = point.criterion
    return test.at(found), test.full_depth().quality


def disagreements(work: Work) -> list[list[str]]:
    """Return what the first seed of each variant saves if so many answers may differ, from whose full depth."""
    rows = []
    for name, variant in product(work.sets, VARIANTS):
        model = f"{variant}-0"
        if work.there(name, model):
            rows.append([name, variant, *(agreeing(work, name, model, whose) for whose in (model, "teacher"))])
    return rows


def agreeing(work: Work, name: str, model: str, whose: str) -> str:
    """Choose the fastest threshold with at most DIFFERING answers on dev other than `whose`; say what it does on test."""
    dev, test = (work.evaluation(name, model, split) for split in ("dev", "test"))
    other = {split: work.evaluation(name, whose, split).recorded.answers[-1] for split in ("dev", "test")}
    good = [point for point in dev.curve("entropy") if differing(dev, point.criterion, other["dev"]) <= DIFFERING]
    if not good:
        return "never"
    chosen = max(good, key=lambda point: point.flops_speedup).criterion
    return f"{test.at(chosen).flops_speedup:.2f}x ({differing(test, chosen, other['test']):.2%})"


def differing(evaluation: Evaluation, criterion: Criterion, answers_B: FloatArray) -> float:
    """Return the fraction of answers under a criterion that are not these."""
    return float((answers_at(evaluation, criterion) != answers_B).mean())


def answers_at(evaluation: Evaluation, criterion: Criterion) -> FloatArray:
    """Return the answers under a criterion: [B]."""
    recorded = evaluation.recorded
    first_B = recorded.exits_at(criterion).argmax(0)
    answers_B: FloatArray = recorded.answers[first_B, np.arange(len(first_B))]
    return answers_B


if __name__ == "__main__":
    main()
