#!/usr/bin/env python
"""The measurements of docs/results/guarantees.md, on models trained by the commands there.

python docs/results/guarantees.py prepare --data $DATA --work W     cut the data: text to train on, and a pool never seen
python docs/results/guarantees.py record --work W [--papers P]      all exits of every row of the pools, once, in bf16
python docs/results/guarantees.py targets|promised|wall|by-exit|sizes --work W     the tables
"""

import argparse
import copy
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pandas as pd
import torch
from transformers import AutoTokenizer, BertConfig

from models.criterion import Criterion
from models.early_exit import EarlyExitModel
from models.families import shape_of
from models.flops import FlopCounter
from pipeline.audit import Promise, audit, findings
from pipeline.benchmark import System, measure, time_criteria, time_curve
from pipeline.calibrating import curve_of
from pipeline.calibration import Calibration
from pipeline.chunks import Chunk
from pipeline.config import AuditSpec, EngineConfig
from pipeline.engine import Engine
from pipeline.evaluation import AllExits, record_as_run
from pipeline.guarantees import rows_needed
from pipeline.receipts import Totals
from pipeline.rows import TokenRows
from pipeline.thresholds import Sample, cheapest_path, single_path
from pipeline.tokenise import Tokenised, Tokeniser, TokeniserSpec
from pipeline.workload import Workload

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
}
"""Models of docs/results/papers.py; their pools are the dev and test rows."""
LIMIT, CONFIDENCE, SPLITS = 0.01, 0.95, 200
CRITERION = Criterion(speed=1.0)
SIGNALS = ("exits", "length", "truncation", "uncertainty")


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
        tokens = tokenise(directory, model, pool)
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


def tokenise(directory: Path, model: EarlyExitModel, pool: pd.DataFrame) -> Tokenised:
    """Turn a pool's texts into tokens."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return Tokeniser(TokeniserSpec.from_hugging_face(tokenizer, model.shape.max_tokens))(pool.text.tolist(), None)


def load(recording: Path, directory: Path) -> Sample:
    """Read a recording."""
    kept, model = np.load(recording), EarlyExitModel.from_pretrained(directory)
    recorded = AllExits(layers=model.exit_layers, logits=kept["logits"], lte=None)
    return Sample.of(recorded, CRITERION, kept["lengths"], model.flops)


def synthetic(rows: int, seed: int, flops: FlopCounter) -> Sample:
    """Draw rows whose answers differ with probabilities that are known: 0.5 u^1.5 times what fades from exit to exit."""
    random = np.random.default_rng(seed)
    *layers, depth = sorted(flops.exit_heads)
    fade = 1 - 0.8 * np.arange(len(layers))[:, None] / len(layers)
    noise = random.normal(size=(len(layers), rows))
    seen = np.minimum(np.abs(random.beta(0.5, 1.5, rows) * fade + 0.15 * fade * noise), 1).astype(np.float32)
    lengths = np.clip(np.exp(random.normal(3.7, 0.6, rows)).astype(np.int64), 4, 256)
    differs = random.random(seen.shape) < 0.5 * seen**1.5 * fade
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
                speeds = dict(curve_of(known, CRITERION, seed).at_speedup(speedup).criterion.speeds)
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
    criterion = curve_of(known, CRITERION, seed).within(LIMIT, CONFIDENCE).criterion
    speeds = np.array([criterion.speed_at(layer) for layer in sample.layers])
    share, differing, _ = sample.outcome(speeds)
    return 1 / share, differing / len(sample), other.outcome(speeds)[1] / len(other), float(criterion.full_depth)


def wall(args: argparse.Namespace) -> None:
    """Ask for speed-ups in time, measured on some rows, and time other rows, in turns with full depth."""
    head("rows", "asked", "FLOPs that this machine needs", "faster on other rows", "fewer FLOPs there")
    for name, sample in pools(args).items():
        model, directory = EarlyExitModel.from_pretrained(args.work / name), args.work / name
        pool = pd.read_parquet(args.work / "data" / f"{name}-pool.parquet")
        curve = curve_of(sample.take(np.arange(len(sample) // 2)), CRITERION)
        first, second = (tokenise(directory, model, pool[start : start + 3000]).rows for start in (0, len(pool) // 2))
        clock = time_curve(str(directory), curve, first, "auto", "cpu")
        reached = [asked for asked in (1.5, 2.0, 3.0) if asked <= max(clock.time_speedups)]
        criteria = [curve.at_speedup(clock.flops_of(asked)).criterion for asked in reached]
        seconds = time_criteria(str(directory), [Criterion(), *criteria], second, "auto", "cpu")
        for asked, criterion, took in zip(reached, criteria, seconds[1:], strict=True):
            engine = Engine(EarlyExitModel.from_pretrained(directory), EngineConfig(criterion=criterion))
            spent = engine.flops.rows(second.lengths, engine.run(second).exit_layers).sum()
            fewer = engine.flops.full_depth(second.lengths).sum() / spent
            cells = f"{clock.flops_of(asked):.2f}x | {seconds[0] / took:.2f}x | {fewer:.2f}x"
            print(f"| {name}, {clock.hardware} | {asked:g}x | {cells} |", flush=True)


def exit_plan(sample: Sample, criterion: Criterion) -> np.ndarray:
    """Where rows leave: [B]."""
    speeds = np.array([criterion.speed_at(layer) for layer in sample.layers])
    leaves = np.vstack([sample.leaves(speeds), np.ones((1, len(sample)), np.bool_)])
    return np.array([*sample.layers, sample.depth])[leaves.argmax(0)]


def forced(_args: argparse.Namespace) -> None:
    """The same for the shape of BERT-base with exits by plan: uncertainties are drawn, weights do not matter."""
    head("rows", "asked", "fewer FLOPs on 20,000 other rows", "fewer FLOPs on the 400 rows timed", "faster there")
    config = BertConfig(num_labels=2)
    torch.manual_seed(0)
    model = EarlyExitModel(config)
    model.add_exits("pooled")
    known, other, many = (synthetic(rows, seed, model.flops) for rows, seed in ((5000, 0), (400, 1), (20_000, 3)))
    curve, random = curve_of(known, CRITERION), np.random.default_rng(2)
    rows = TokenRows.from_lists([random.integers(1000, 30_000, n).tolist() for n in other.lengths])
    engines, plans, plan_of_many = {}, {}, {}
    for asked in (1.0, 1.5, 2.0, 3.0):
        criterion = curve.at_speedup(asked).criterion
        plans[asked], plan_of_many[asked] = (exit_plan(sample, criterion) for sample in (other, many))
        engines[asked] = Engine(copy.deepcopy(model), EngineConfig(criterion=criterion))
    systems = {
        str(asked): System(run=partial(_planned, engines[asked]), work=Workload(rows=rows, exit_plan=plans[asked]))
        for asked in engines
    }
    times = measure(systems, 3, lambda: None, lambda _line: None)
    for asked in (1.5, 2.0, 3.0):
        flops, faster = engines[asked].flops, times["1.0"].median / times[str(asked)].median
        fewer = [
            flops.full_depth(sample.lengths).sum() / flops.rows(sample.lengths, plan[asked]).sum()
            for sample, plan in ((many, plan_of_many), (other, plans))
        ]
        print(f"| BERT-base shape | {asked:g}x | {fewer[0]:.2f}x | {fewer[1]:.2f}x | {faster:.2f}x |")


def _planned(engine: Engine, work: Workload) -> object:
    return engine.run(work.rows, work.exit_plan)


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
    engine = Engine(EarlyExitModel.from_pretrained(directory), EngineConfig(criterion=choice.criterion))
    spec = AuditSpec(share=0.25, uncertainty_edges=tuple(calibration.reference.uncertainty_edges))
    promise = Promise(limit=0.02, exits=tuple(choice.exits), reference=calibration.reference)
    head("night", "audited", "differ", "bounds", "verdict", *(f"PSI {name}" for name in SIGNALS), "alarms")
    nights = [(f"movie {night}", texts["movie"][8000 + 1500 * night :][:1500]) for night in range(10)]
    for name, night in [*nights, ("newswire", texts["news"][:1500])]:
        tokens = tokenise(directory, model, night)
        answers = engine.run(tokens.rows)
        sums = audit(engine, spec, name, tokens.rows, answers)
        totals = Totals(rows_out=len(night), truncated=int(tokens.truncated.sum()), sums=sums)
        totals.exits = np.bincount(answers.exit_layers, minlength=model.shape.layers + 1)[1:].tolist()
        found = findings(totals, promise)
        told = {signal.name: signal.psi for signal in found.signals}
        cells = [
            name,
            f"{found.rows}",
            f"{found.share:.2%}",
            f"{found.at_least:.2%} to {found.at_most:.2%}",
            found.verdict,
        ]
        print(
            f"| {' | '.join([*cells, *(f'{told[name]:.3f}' for name in SIGNALS)])} | {' '.join(found.alarms)} |",
            flush=True,
        )


def publish(args: argparse.Namespace) -> None:
    """The same with classify.py itself: a night of movie sentences, and one of newswire, into one folder; after `drift`."""
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
    command = [sys.executable, str(Path(__file__).resolve().parents[2] / "jobs" / f"{name}.py"), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True)
    print(
        f"\n{name}.py {' '.join(map(str, options))}: exit code {done.returncode}\n{done.stdout}{done.stderr}",
        flush=True,
    )


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*WHAT])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--papers", type=Path, help="folder of docs/results/papers.py")
    parser.add_argument("--sets", nargs="+", help="names to be content with")
    args = parser.parse_args()
    for step in WHAT[args.what]:
        step(args)


WHAT = {
    "prepare": [prepare],
    "record": [record],
    "targets": [targets],
    "promised": [promised],
    "wall": [wall, forced],
    "by-exit": [by_exit],
    "sizes": [sizes],
    "drift": [drift],
    "publish": [publish],
}

if __name__ == "__main__":
    main()
