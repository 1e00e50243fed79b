#!/usr/bin/env python
"""Train the models of README.md by the project's own jobs, models that are there left alone, and print its tables.

python docs/results/twelve-layers/mpnet.py --data $DATA --backbone all-mpnet-base-v2 --work twelve
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import pandas as pd

from docs.results.papers.tables import DROPS, Work, table, training_options

NAMES = {"sst2": "negative,positive", "ag_news": "World,Sports,Business,Sci/Tech"}
TOKENS = {"sst2": 64, "ag_news": 64}
TRAIN_ROWS = {"sst2": 6_000, "ag_news": 1_200}
TEXT = {"sst2": ("unlabeled_movie", 6_000), "ag_news": ("unlabeled_news", 1_500)}
TEST = {"sst2": ("dev", 872), "ag_news": ("test", 1_000)}
DEV_ROWS = {"sst2": 1_000, "ag_news": 500}
STUDENTS = {"sst2": (6, 3)}
"""Layers of the students beside the exits; see docs/results/students."""
RATES = "--learning-rate 4e-5 --batch-rows 32"
METHODS = {
    "FastBERT": ("fastbert", ("entropy",)),
    "DeeBERT": ("deebert", ("entropy",)),
    "BERxiT": ("berxit", ("confidence", "lte")),
}


def prepare(data: Path, work: Path) -> None:
    """Cut the sets into train, dev (thresholds are chosen on it) and test, and lay unlabelled text beside the training text."""
    for name in NAMES:
        folder = work / "data" / f"{name}-text"
        if folder.exists():
            continue
        folder.mkdir(parents=True)
        rows = pd.read_parquet(data / name / "train.parquet").sample(frac=1, random_state=0)
        split, count = TEST[name]
        source, more = TEXT[name]
        parts = {
            "dev": rows[: DEV_ROWS[name]],
            "train": rows[DEV_ROWS[name] :][: TRAIN_ROWS[name]],
            "test": pd.read_parquet(data / name / f"{split}.parquet").sample(frac=1, random_state=0)[:count],
        }
        for part, table_of_part in parts.items():
            table_of_part.to_parquet(work / "data" / f"{name}-{part}.parquet", index=False)
        parts["train"][["text"]].to_parquet(folder / "a.parquet", index=False)
        texts = pd.concat(pd.read_parquet(file) for file in sorted((data / source).glob("part-*")))
        texts[["text"]].sample(more, random_state=0).to_parquet(folder / "b.parquet", index=False)


def commands(name: str, backbone: str, work: Path) -> dict[str, str]:
    """Return the command line of each model of a set, without its output."""
    data = work / "data"
    learn = (
        f"finetune.py --backbone {backbone} --train {data}/{name}-train.parquet --dev {data}/{name}-dev.parquet "
        f"--class-names {NAMES[name]} --max-tokens {TOKENS[name]} --epochs 2 {RATES}"
    )
    exits = f"distill.py --model {work}/{name}/teacher"
    students = {
        f"student-{layers}": f"{exits} --input {data}/{name}-text --layers {layers} {RATES}"
        for layers in STUDENTS.get(name, ())
    }
    return {
        "teacher": learn,
        "fastbert": f"{exits} --input {data}/{name}-text --head attention",
        "deebert": f"{exits} --input {data}/{name}-train.parquet --head pooled --label-column label --label-share 1 --epochs 2",
        "berxit": f"{learn} --head attention --strategy alternating",
        **students,
    }


def print_tables(work: Work) -> None:
    """Print what each method saves, and the quality of every exit."""
    for name in work.sets:
        rows, layers = [], []
        for method, (model, criteria) in METHODS.items():
            if not work.there(name, model):
                continue
            test = work.evaluation(name, model, "test")
            layers.append([method, *(f"{quality:.3f}" for quality in test.by_layer().values())])
            for criterion in criteria:
                cells = [method, criterion, f"{test.full_depth().quality:.4f}"]
                for drop in DROPS:
                    point, full = work.chosen(name, model, criterion, drop)
                    cells.append(f"{point.flops_speedup:.2f}x ({point.quality - full:+.4f})")
                rows.append(cells)
        print(f"### {name}\n")
        table(["method", "criterion", "full depth", *(f"-{drop:.1%} on dev" for drop in DROPS)], rows)
        table(["method", *map(str, range(1, 13))], layers)


def main() -> None:
    args = training_options(__doc__, NAMES)
    work = Work(args.work, tuple(args.sets))
    if not args.trained:
        prepare(args.data, args.work)
        for name in args.sets:
            work.train(name, commands(name, args.backbone, args.work))
    print_tables(work)


if __name__ == "__main__":
    main()
