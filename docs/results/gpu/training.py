#!/usr/bin/env python
"""Time training beside what a user would run instead, in turns on the same rows.

  finetune     jobs/finetune.py's loop on a whole model without branch exits, against transformers.Trainer: batches of as many
               rows, grouped by length, as many steps, bf16 where the device multiplies it, fused AdamW, no worker processes
  distill      jobs/distill.py's loop on branch heads over a frozen backbone, which labels the texts on the way, against
               classifying the same texts at full depth: what the heads cost beside what they learn from

Rows are random tokens of log-normal lengths; weights are random. Trainer needs accelerate, and is left out without it.

  python docs/results/gpu/training.py
  python docs/results/gpu/training.py --shape 2x64 --rows 400 --distill-rows 400 --mean-tokens 20 --repetitions 1
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from docs.results.gpu import made
from models.early_exit import EarlyExitModel
from models.precision import best_dtype
from pipeline.benchmark.measure import System, Timing, measure, synchronizer
from pipeline.benchmark.peers.padding import padded_batches
from pipeline.benchmark.shapes import random_model
from pipeline.benchmark.workload import Workload, make_workload
from pipeline.corpus.chunks import Chunk, MemorySource
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.rows import TokenRows
from pipeline.training.config import TrainingConfig
from pipeline.training.loop import train
from pipeline.training.recipes import FrozenHeads, Objective, Recipe, WholeModel

OURS, TRAINER, DISTILL, CLASSIFY = (
    "finetune",
    "transformers.Trainer",
    "distill, frozen backbone",
    "classify, full depth",
)
LEARNING_RATE = 3e-5
DEV_ROWS = 32
"""Rows that an epoch is scored on: few, since Trainer scores none."""


def chunk_of(rows: TokenRows, *, labelled: bool) -> Chunk:
    """Return rows to train on, with random labels of two classes or with none."""
    labels = np.random.default_rng(0).integers(2, size=len(rows)).astype(np.float32)
    return Chunk(rows=rows, labels=labels if labelled else labels * np.nan, global_rows=len(rows))


def our_loop(recipe: Recipe, chunk: Chunk, batch_rows: int) -> Callable[[Workload], None]:
    """Return one epoch of the loop that fine-tuning and distillation run, and nothing else of their jobs."""
    dev = chunk_of(chunk.rows.take(np.arange(min(DEV_ROWS, len(chunk)))), labelled=True)
    config = TrainingConfig(epochs=1, batch_rows=batch_rows, learning_rate=LEARNING_RATE)

    def run(_work: Workload) -> None:
        state = train(recipe, MemorySource(whole=chunk, seed=0), dev, config, log=lambda _line: None)
        check_steps(state.step, len(chunk), batch_rows)

    return run


def check_steps(steps: int, count: int, batch_rows: int) -> None:
    """Raise AssertionError if an epoch of `count` rows took more or fewer steps than there are batches.

    Our loop ends every chunk of MemorySource with a batch of its own, so the batch size should divide a chunk.
    """
    if steps != -(-count // batch_rows):
        raise AssertionError(f"{steps} steps for {count:,} rows in batches of {batch_rows}")


def collate(rows: TokenRows, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Pad a batch of Trainer's, by its rows' numbers: a collator with a tokenizer takes longer."""
    numbers = np.array([feature["row"] for feature in features])
    ids_BL, mask_BL = next(padded_batches(rows, numbers, len(numbers)))
    labels_B = torch.tensor([feature["labels"] for feature in features])
    return {"input_ids": torch.from_numpy(ids_BL), "attention_mask": torch.from_numpy(mask_BL), "labels": labels_B}


def trainer_loop(shape: str, chunk: Chunk, batch_rows: int, folder: str) -> Callable[[Workload], None]:
    """Return one epoch of transformers.Trainer."""
    config = random_model(shape, "pooled").config
    lists = np.split(chunk.rows.token_ids, chunk.rows.offsets[1:-1])
    data = [
        {"input_ids": ids, "labels": int(label), "row": row}
        for row, (ids, label) in enumerate(zip(lists, chunk.labels, strict=True))
    ]
    trainer = Trainer(
        model=AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa"),
        args=TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=batch_rows,
            num_train_epochs=1,
            learning_rate=LEARNING_RATE,
            optim="adamw_torch_fused",
            bf16=best_dtype(torch.device(made.DEVICE)) == "bf16",
            train_sampling_strategy="group_by_length",
            dataloader_num_workers=0,
            dataloader_pin_memory=made.DEVICE == "cuda",
            remove_unused_columns=False,
            use_cpu=made.DEVICE == "cpu",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=data,  # type: ignore[arg-type]
        data_collator=partial(collate, chunk.rows),
    )

    def run(_work: Workload) -> None:
        trainer.train()
        check_steps(trainer.state.global_step, len(chunk), batch_rows)

    return run


def systems_of(args: argparse.Namespace, folder: str) -> dict[str, System]:
    """Prepare all that is timed."""
    few, many = (workload(args, count) for count in (args.rows, args.distill_rows))
    plain, with_exits = EarlyExitModel(random_model(args.shape, args.head).config), random_model(args.shape, args.head)
    labelled, texts = chunk_of(few.rows, labelled=True), chunk_of(many.rows, labelled=False)
    recipe = WholeModel(plain.to(made.DEVICE), Objective(soft=False))
    systems = {OURS: System(run=our_loop(recipe, labelled, args.batch_rows), work=few)}
    if find_spec("accelerate"):
        systems[TRAINER] = System(run=trainer_loop(args.shape, labelled, args.batch_rows, folder), work=few)
    else:
        print("transformers.Trainer is left out, since accelerate is not installed: pip install accelerate")
    heads = FrozenHeads(with_exits.to(made.DEVICE), Objective(soft=True))
    systems[DISTILL] = System(run=our_loop(heads, texts, args.batch_rows), work=many)
    engine = Engine(LoadedModel(random_model(args.shape, args.head), EngineConfig(), made.DEVICE))
    return systems | {CLASSIFY: System(run=lambda work: engine.run(work.rows), work=many)}


def workload(args: argparse.Namespace, count: int) -> Workload:
    """Draw this many rows."""
    sizes = {"mean_tokens": args.mean_tokens, "sigma": made.SIGMA, "longest": 512, "layers": 1, "mean_exit": 1}
    return make_workload(count, **sizes, vocabulary=30_000, seed=0)


def speedup(timings: Mapping[str, Timing], ours: str, theirs: str) -> float | None:
    """Return how many times faster the first system is on the same rows; None if the second was left out."""
    return timings[ours].speedup_over(timings[theirs]) if theirs in timings else None


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of this script's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="6x384", help="(default: %(default)s)")
    parser.add_argument("--head", default="pooled", help="of the exits to distil (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=8_192, help="to fine-tune on (default: %(default)s)")
    parser.add_argument("--distill-rows", type=int, default=65_536, help="to distil from (default: %(default)s)")
    parser.add_argument("--batch-rows", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--mean-tokens", type=float, default=70, help="(default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=3, help="counted rounds (default: %(default)s)")
    parser.add_argument("--output", help="write a JSON document here")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    log = partial(print, file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        systems = systems_of(args, folder)
        timings = measure(systems, args.repetitions, synchronizer(made.DEVICE), log)
    rates = {name: len(systems[name].work.rows) / timing.median for name, timing in timings.items()}
    print("| system | rows | rows/s | slowest / fastest round |\n| --- | --- | --- | --- |")
    for name, timing in timings.items():
        print(f"| {name} | {len(systems[name].work.rows):,} | {rates[name]:,.1f} | {timing.spread:.2f} |")
    ratios = {
        "finetune_over_trainer": speedup(timings, OURS, TRAINER),
        "distill_over_classify": speedup(timings, DISTILL, CLASSIFY),
    }
    for name, ratio in ratios.items():
        print(f"{name}: {'not measured' if ratio is None else f'{ratio:.2f}'}")
    made.write_document({"rows_per_s": rates, **ratios, "options": vars(args)}, args.output)


if __name__ == "__main__":
    main()
