#!/usr/bin/env python
"""The measurements of docs/results/guarantees/README.md on recorded rows, of models trained by the commands there.

python docs/results/guarantees/run.py prepare --data $DATA --work W     cut the data: text to train on, and a pool never seen
python docs/results/guarantees/run.py record --work W [--papers P]      all exits of every row of the pools, once, in bf16
python docs/results/guarantees/run.py targets|promised|by-exit|sizes --work W          the tables
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np
import pandas as pd
from transformers import AutoTokenizer, BertConfig

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from models.exits.flops import FlopCounter
from models.families.table import shape_of
from pipeline.calibration.fit import fit_curve
from pipeline.calibration.guarantees import rows_needed
from pipeline.calibration.thresholds import Sample, cheapest_path, single_path
from pipeline.corpus.chunks import Chunk
from pipeline.corpus.tokenize import Tokenized, Tokenizer, TokenizerSpec
from pipeline.evaluation.recorded import AllExits, record_as_run

SETS = {
    "ag_news": (["train", "dev", "test"], 6_000, 12_000, 40_000),
    "sst2": (["train"], 12_000, 24_000, 24_000),
}
"""Files, rows to fine-tune on, rows to distil from, rows of the pool at most."""
PAPERS = {
    "trec": "trec/soft-attention-0",
    "trec, joint": "trec/joint",
    "subj": "subj/labels-attention-0",
    "subj, joint": "subj/joint",
    "qnli": "qnli/soft-attention-0",
    "chnsenticorp": "chnsenticorp/labels-attention-0",
    "chnsenticorp, joint": "chnsenticorp/joint",
}
"""Models of docs/results/papers/run.py; their pools are the dev and test rows."""
Step = Callable[[argparse.Namespace], None]
LIMIT, CONFIDENCE, SPLITS = 0.01, 0.95, 200
CRITERION = Criterion(speed=1.0)


def prepare(args: argparse.Namespace) -> None:
    """Draw, of each set, text to distil from, among it rows to fine-tune on, and a pool from the rest."""
    (args.work / "data").mkdir(parents=True, exist_ok=True)
    for name, (files, train, text, pool) in SETS.items():
        rows = pd.concat([pd.read_parquet(args.data / name / f"{file}.parquet") for file in files])
        rows = rows[["id", "text", "label"]].reset_index(drop=True)
        distil, rest = _cut(rows, text, 0)
        parts = {"train": _cut(distil, train, 1)[0], "distill": distil, "pool": _cut(rest, pool, 2)[0]}
        for part, frame in parts.items():
            frame.to_parquet(args.work / "data" / f"{name}-{part}.parquet", index=False)


def _cut(rows: pd.DataFrame, count: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Draw rows, and return them and the others, both in their old order."""
    order = np.random.default_rng(seed).permutation(len(rows))
    return rows.iloc[np.sort(order[:count])], rows.iloc[np.sort(order[count:])]


def record(args: argparse.Namespace) -> None:
    """Write what all exits say of the pools to NAME.npz."""
    for name, (directory, files) in places(args).items():
        if (args.work / f"{name}.npz").exists() or not (directory / "model.safetensors").exists():
            continue
        started, model = time.monotonic(), EarlyExitModel.from_pretrained(directory)
        pool = pd.concat([pd.read_parquet(file) for file in files])
        tokens = tokenize(directory, model, pool)
        examples = Chunk(rows=tokens.rows, labels=pool.label.to_numpy(np.float32))
        recorded = record_as_run(model, examples, "auto", "cpu")
        np.savez(args.work / f"{name}.npz", logits=recorded.logits, lengths=tokens.rows.lengths, labels=pool.label)
        print(f"{name}: {len(pool):,} rows in {time.monotonic() - started:.0f} s", flush=True)


def places(args: argparse.Namespace) -> dict[str, tuple[Path, list[Path]]]:
    """Model directory and files of the pool, by name."""
    found = {name: (args.work / name, [args.work / "data" / f"{name}-pool.parquet"]) for name in SETS}
    for name, place in PAPERS.items() if args.papers else ():
        data = args.papers / "data" / place.split("/")[0]
        found[name] = (args.papers / place, [Path(f"{data}-dev.parquet"), Path(f"{data}-test.parquet")])
    return {name: place for name, place in found.items() if not args.sets or name in args.sets}


def tokenize(directory: Path, model: EarlyExitModel, pool: pd.DataFrame) -> Tokenized:
    """Turn a pool's texts into tokens."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    pairs = pool.text_pair.tolist() if "text_pair" in pool else None
    return Tokenizer(TokenizerSpec.from_hugging_face(tokenizer, model.shape.max_tokens))(pool.text.tolist(), pairs)


def load(recording: Path, directory: Path) -> Sample:
    """Read a recording."""
    kept, model = np.load(recording), EarlyExitModel.from_pretrained(directory)
    recorded = AllExits(layers=model.exit_layers, logits=kept["logits"], lte=None)
    return Sample.of(recorded, CRITERION, kept["lengths"], model.flops)


def synthetic(rows: int, seed: int, flops: FlopCounter, worse: float = 1.0) -> Sample:
    """Draw rows whose answers differ with probabilities that are known: 0.5 u^1.5 times what fades from exit to exit.

    They are `worse` times that, at most 1.
    """
    random = np.random.default_rng(seed)
    *layers, depth = sorted(flops.exit_heads)
    fade = 1 - 0.8 * np.arange(len(layers))[:, None] / len(layers)
    noise = random.normal(size=(len(layers), rows))
    seen = np.minimum(np.abs(random.beta(0.5, 1.5, rows) * fade + 0.15 * fade * noise), 1).astype(np.float32)
    lengths = np.clip(np.exp(random.normal(3.7, 0.6, rows)).astype(np.int64), 4, 256)
    differs = random.random(seen.shape) < worse * 0.5 * seen**1.5 * fade
    return Sample(layers=tuple(layers), depth=depth, uncertainty=seen, differs=differs, lengths=lengths, flops=flops)


def hindsight(tested: Sample, path: np.ndarray, limit: float = LIMIT) -> float:
    """Speed-up where a path crosses the limit on these very rows, found by bisection."""
    low, high = 0, len(path)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if tested.outcome(path[middle])[1] <= limit * len(tested) else (low, middle)
    return 1 / tested.outcome(path[low])[0]


def targets(args: argparse.Namespace) -> None:
    """Ask for speed-ups on half of a pool, and look at the other half."""
    head("rows", "asked", "fewer FLOPs on other rows", "furthest off in 20 splits", "other answers")
    for name, sample in pools(args).items():
        for speedup in (1.5, 2.0, 3.0):
            got = []
            for seed in range(20):
                known, other = halves(sample, seed, len(sample) // 2)
                speeds = dict(fit_curve(known, CRITERION, seed).at_speedup(speedup).criterion.speeds)
                share, differing, _ = other.outcome(np.array([speeds.get(layer, 0.0) for layer in sample.layers]))
                got.append((1 / share, differing / len(other)))
            found = np.array(got)
            off = np.abs(found[:, 0] / speedup - 1).max()
            print(f"| {name} | {speedup:g}x | {found[:, 0].mean():.3f}x | {off:.1%} | {found[:, 1].mean():.2%} |")


def promised(args: argparse.Namespace) -> None:
    """Calibrate on random rows of a pool, and count how often more than the limit differ, of all rows and of the others."""
    head(
        "rows",
        "calibrated on",
        f"broken of {SPLITS}",
        "on other rows",
        "speed-up",
        "in hindsight",
        "share of it",
        "full depth",
    )
    for name, sample in (pools(args) | made_up(args)).items():
        single = single_path(len(sample.layers))
        best = hindsight(sample, single)
        for rows in (1000, 2000, 4000, 12_000):
            speedup, every, other, stays = np.array([_one_split(sample, seed, rows) for seed in range(SPLITS)]).T
            cells = [
                name,
                f"{rows:,}",
                f"{(every > LIMIT).sum()}",
                f"{(other > LIMIT).sum()}",
                f"{speedup.mean():.2f}x",
            ]
            print(
                f"| {' | '.join(cells)} | {best:.2f}x | {speedup.mean() / best:.0%} | {stays.sum():.0f} |", flush=True
            )


def made_up(args: argparse.Namespace) -> dict[str, Sample]:
    """Rows of MiniLM's shape with attention heads."""
    if args.sets and "synthetic" not in args.sets:
        return {}
    shape = shape_of(BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536))
    return {
        "synthetic": synthetic(60_000, 0, FlopCounter(shape, dict.fromkeys(range(1, 6), "attention") | {6: "pooled"}))
    }


def _one_split(sample: Sample, seed: int, rows: int) -> tuple[float, float, float, float]:
    """Speed-up on all rows, shares of differing answers among all and among the others, whether it stays at full depth."""
    known, other = halves(sample, seed, rows)
    criterion = fit_curve(known, CRITERION, seed).within(LIMIT, CONFIDENCE).criterion
    speeds = np.array([criterion.speed_at(layer) for layer in sample.layers])
    share, differing, _ = sample.outcome(speeds)
    return 1 / share, differing / len(sample), other.outcome(speeds)[1] / len(other), float(criterion.full_depth)


def by_exit(args: argparse.Namespace) -> None:
    """Compare a threshold for every exit with one for all, found on half of a pool, at equal disagreement on the other half."""
    head("rows", "other answers", "one threshold", "one for every exit", "")
    for name, sample in pools(args).items():
        for limit in (0.005, 0.01, 0.02):
            got = []
            for seed in range(20):
                known, other = halves(sample, seed, len(sample) // 2)
                paths = single_path(len(sample.layers)), cheapest_path(known)
                got.append([hindsight(other, path, limit) for path in paths])
            one, own = np.array(got).mean(0)
            print(f"| {name} | {limit:.1%} | {one:.2f}x | {own:.2f}x | {own / one - 1:+.1%} |", flush=True)


def sizes(_args: argparse.Namespace) -> None:
    """How many rows it takes, by the limit and by what really differs."""
    head("limit", "none differ", "a quarter of it", "half of it", "three quarters")
    for confidence in (0.9, 0.95, 0.99):
        for limit in (0.002, 0.005, 0.01, 0.02, 0.05):
            cells = [f"{rows_needed(limit, confidence, part * limit):,}" for part in (0, 0.25, 0.5, 0.75)]
            print(f"| {limit:.1%} at {confidence:.0%} | {' | '.join(cells)} |")


def head(*cells: str) -> None:
    """Print the head of a table."""
    print(f"\n| {' | '.join(cells)} |\n|{'---|' * len(cells)}", flush=True)


def pools(args: argparse.Namespace) -> dict[str, Sample]:
    """Read the recordings that are there."""
    there = {name: args.work / f"{name}.npz" for name in places(args)}
    return {name: load(there[name], place) for name, (place, _) in places(args).items() if there[name].exists()}


def halves(sample: Sample, seed: int, rows: int) -> tuple[Sample, Sample]:
    """Split at random: `rows` to calibrate on, and the others."""
    order = np.random.default_rng([7, seed]).permutation(len(sample))
    return sample.take(order[:rows]), sample.take(order[rows:])


def main(doc: str, steps: Mapping[str, Step]) -> None:
    """Carry out the step that the command line names."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*steps])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--papers", type=Path, help="folder of docs/results/papers/run.py")
    parser.add_argument("--sets", nargs="+", help="names to be content with")
    args = parser.parse_args()
    steps[args.what](args)


if __name__ == "__main__":
    steps: dict[str, Step] = {"prepare": prepare, "record": record, "targets": targets, "promised": promised}
    main(__doc__ or "", steps | {"by-exit": by_exit, "sizes": sizes})
