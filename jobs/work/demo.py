"""Make a corpus and run the other jobs on it: the work of jobs/demo.py."""

import argparse
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from jobs.cli import command
from models.hugging_face import quiet_transformers
from pipeline.benchmark.synthetic import CLASSES, LEVELS, reviews, vocabulary
from pipeline.output.results import open_results
from pipeline.reports.run_report import REPORT

JOBS = Path(__file__).resolve().parents[1]
TRAIN_ROWS, TEST_ROWS, CORPUS_FILES = 12_000, 2_000, 5


def run(args: argparse.Namespace) -> int:
    """Make the corpus, run the jobs on it, and show the result."""
    started = time.monotonic()
    folder = Path(args.folder)
    shutil.rmtree(folder / "out", ignore_errors=True)  # else a second demo would find nothing to do
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    print(f"1. A corpus of {args.rows:,} reviews, easy to hard, in {folder}/corpus, and rows with labels beside it")
    write_reviews(folder / "train.parquet", TRAIN_ROWS, seed=1)
    write_reviews(folder / "test.parquet", TEST_ROWS, seed=2)
    for number in range(CORPUS_FILES):
        rows = (args.rows + number) // CORPUS_FILES  # which add up, whatever the number of rows
        write_reviews(folder / "corpus" / f"part-{number}.parquet", rows, seed=10 + number)
    make_backbone(folder / "backbone")
    print("\n2. Fine-tune a small BERT, from scratch, into the full-depth classifier")
    job(f"finetune.py --backbone {folder}/backbone --train {folder}/train.parquet --dev {folder}/test.parquet "
        f"--class-names {','.join(CLASSES)} --output {folder}/teacher --epochs 5 --learning-rate 5e-4")  # fmt: skip
    print("\n3. Distil an exit for every layer from its own predictions: no labels needed")
    job(f"distill.py --model {folder}/teacher --input {folder}/train.parquet --output {folder}/model --head attention "
        "--epochs 2")  # fmt: skip
    print("\n4. Classify the corpus on Ray")
    job(f"classify.py --model {folder}/model --input {folder}/corpus --output {folder}/out --id-column id "
        f"--keep level truth --speed {args.speed}")  # fmt: skip
    print("\n5. What it cost in accuracy")
    job(f"evaluate.py --model {folder}/model --data {folder}/test.parquet --speeds {args.speed}")
    look(folder)
    print(f"\ndone in {time.monotonic() - started:.0f} s")
    return command.DONE


def write_reviews(path: Path, rows: int, seed: int) -> None:
    """Write synthetic reviews with label, class name and level of each."""
    drawn = list(reviews(rows, seed))
    columns = {
        "id": [f"{path.stem}-{row}" for row in range(rows)],
        "text": [review.text for review in drawn],
        "label": pa.array([review.label for review in drawn], pa.int64()),
        "truth": [CLASSES[review.label] for review in drawn],
        "level": [review.level for review in drawn],
    }
    pq.write_table(pa.table(columns), path)


def make_backbone(directory: Path) -> None:
    """Write a small BERT with random weights, and a tokenizer with the words of the corpus as its vocabulary."""
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *vocabulary()]
    sizes = {"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 512}
    config = BertConfig(vocab_size=len(words), max_position_embeddings=128, **sizes)
    with quiet_transformers():
        BertForSequenceClassification(config).save_pretrained(directory)
        (directory / "vocab.txt").write_text("\n".join(words) + "\n")
        BertTokenizer(str(directory / "vocab.txt"), model_max_length=128).save_pretrained(directory)


def job(line: str) -> None:
    """Print a job's command line and run it; a job that fails ends the demo."""
    name, *options = shlex.split(line)
    installed = (__package__ or "").startswith("offramp.")
    shown = f"offramp {line.replace('.py', '', 1)}" if installed else f"python jobs/{line}"
    start = ["-m", "offramp", name.removesuffix(".py")] if installed else [str(JOBS / name)]
    print(f"\n   $ {shown}\n", flush=True)
    with subprocess.Popen([sys.executable, *start, *options]) as running:
        try:
            code = running.wait()
        except BaseException:
            running.terminate()  # it ends its Ray, which would be left otherwise; leaving the block waits for it
            raise
    if code:
        raise command.FailedError(f"{name} failed, so the demo ends here")


def look(folder: Path) -> None:
    """Look at the result with pandas, as a user would."""
    print(f'\n6. Look at it: easy rows exit first\n\n   >>> out = open_results("{folder}/out").to_table().to_pandas()')
    print('   >>> out["right"] = out.label == out.truth')
    print('   >>> out.groupby("level")[["exit_layer", "uncertainty", "right"]].mean()\n')
    out = open_results(folder / "out").to_table().to_pandas()
    out["right"] = out.label == out.truth
    print(out.groupby("level")[["exit_layer", "uncertainty", "right"]].mean().loc[LEVELS].round(3).to_string())
    print(f"\n   {folder / 'out' / REPORT} shows the run in a browser")
