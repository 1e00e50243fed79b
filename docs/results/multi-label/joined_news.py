#!/usr/bin/env python
"""Make a multi-label set of joined news, train exits on it by the project's own jobs, and print what they save.

python docs/results/multi-label/joined_news.py --data $DATA --backbone all-MiniLM-L6-v2 --work tagged
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np
import pandas as pd

from docs.results.papers.tables import DROPS, Work, table
from models.exits.criterion import Criterion

TOPICS = ("World", "Sports", "Business", "Sci/Tech")
CHARACTERS = 120
"""Of each item, so that three of them fit into what a small model reads in a moment."""
ROWS = {"train": 8_000, "dev": 2_000, "test": 4_000}
NAME = "tagged"
LIMITS = (0.01, 0.02, 0.05)


def joined(news: pd.DataFrame, films: pd.DataFrame, rows: int, seed: int) -> pd.DataFrame:
    """Join one to three news items, whose topics are the labels; one text in ten is of film reviews, and has none."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(rows):
        source = films if random.random() < 0.1 else news
        items = source.iloc[random.integers(0, len(source), random.integers(1, 4))]
        labels = [] if source is films else [TOPICS[label] for label in sorted(set(items.label))]
        made.append({"text": " ".join(text[:CHARACTERS] for text in items.text), "label": labels})
    return pd.DataFrame(made)


def prepare(data: Path, work: Path) -> None:
    folder = work / "data"
    if (folder / f"{NAME}-test.parquet").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    news = pd.read_parquet(data / "ag_news" / "train.parquet").sample(frac=1, random_state=0)
    parts = {"train": news[:20_000], "dev": news[20_000:], "test": pd.read_parquet(data / "ag_news" / "test.parquet")}
    films = pd.read_parquet(data / "unlabeled_movie" / "part-00000.parquet")
    for seed, (part, source) in enumerate(parts.items()):
        joined(source, films[seed::3], ROWS[part], seed).to_parquet(folder / f"{NAME}-{part}.parquet", index=False)
    pd.read_parquet(folder / f"{NAME}-train.parquet")[["text"]].to_parquet(folder / f"{NAME}-text.parquet", index=False)


def commands(backbone: str, work: Path) -> dict[str, str]:
    """Return the command line of each model, without its output."""
    data, exits = (
        work / "data",
        f"distill.py --model {work}/{NAME}/teacher --input {work}/data/{NAME}-text.parquet --epochs 3",
    )
    return {
        "teacher": f"finetune.py --backbone {backbone} --train {data}/{NAME}-train.parquet --dev {data}/{NAME}-dev.parquet "
        f"--task multi-label --class-names {','.join(TOPICS)} --epochs 2 --batch-rows 32",
        "attention": f"{exits} --head attention",
        "pooled": f"{exits} --head pooled",
    }


def print_tables(work: Work) -> None:
    rows, layers, limits = [], [], []
    for model in ("attention", "pooled"):
        test = work.evaluation(NAME, model, "test")
        layers.append([model, *(f"{quality:.4f}" for quality in test.by_layer().values())])
        cells = [model, f"{test.full_depth().quality:.4f}"]
        for drop in DROPS:
            point, full = work.chosen(NAME, model, "entropy", drop)
            cells.append(f"{point.flops_speedup:.2f}x ({point.quality - full:+.4f})")
        rows.append(cells)
        limits.append([model, *(within(work, model, limit) for limit in LIMITS)])
    table(["exits", "micro-F1, full depth", *(f"-{drop:.1%} on dev" for drop in DROPS)], rows)
    table(["exits", *map(str, range(1, len(layers[0])))], layers)
    table(["exits", *(f"{limit:.0%} of label sets differ on dev" for limit in LIMITS)], limits)


def within(work: Work, model: str, limit: float) -> str:
    """Choose the fastest threshold with so few label sets on dev other than at full depth; say what it does on test."""
    chosen = max(
        (speed for speed in np.linspace(0, 1, 201).tolist() if differing(work, model, "dev", speed)[0] <= limit),
        default=0.0,
    )
    fraction, speedup = differing(work, model, "test", chosen)
    return f"{speedup:.2f}x ({fraction:.2%})"


def differing(work: Work, model: str, split: str, speed: float) -> tuple[float, float]:
    """Return the fraction of label sets other than at full depth, and how many times fewer FLOPs, at a threshold."""
    evaluation = work.evaluation(NAME, model, split)
    point = evaluation.at(Criterion(name="entropy", speed=speed))
    return 1 - point.agreement, point.flops_speedup


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--work", required=True, type=Path)
    args = parser.parse_args()
    work = Work(args.work, (NAME,))
    prepare(args.data, args.work)
    work.train(NAME, commands(args.backbone, args.work))
    print_tables(work)


if __name__ == "__main__":
    main()
