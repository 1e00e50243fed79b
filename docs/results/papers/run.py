#!/usr/bin/env python
"""Train every model of docs/results/papers/README.md, by the project's own jobs. Models that are there already are left alone.

python docs/results/papers/run.py --data $DATA --backbone all-MiniLM-L6-v2 --work papers
"""

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

JOBS = Path(__file__).resolve().parents[3] / "jobs"
NAMES = {
    "sst2": "negative,positive",
    "ag_news": "World,Sports,Business,Sci/Tech",
    "trec": "ABBR,DESC,ENTY,HUM,LOC,NUM",
    "subj": "subjective,objective",
    "qnli": "entailment,not_entailment",
    "chnsenticorp": "negative,positive",
}
UNLABELLED = {
    "sst2": "movie-10k",
    "ag_news": "news-5k",
    "trec": "questions-all",
    "subj": "movie-20k",
    "qnli": "qnli-unlabelled",
    "chnsenticorp": "reviews-10k",
}
SEEDS = (0, 1, 2)


def prepare(data: Path, work: Path) -> None:
    """Cut the data sets into train, dev (thresholds and epochs are chosen on it) and test (looked at once)."""
    if (work / "data").exists():
        return
    (work / "data").mkdir(parents=True)

    def write(name: str, split: str, rows: pd.DataFrame) -> None:
        rows.to_parquet(work / "data" / f"{name}-{split}.parquet", index=False)

    def read(name: str, split: str) -> pd.DataFrame:
        return pd.read_parquet(data / name / f"{split}.parquet")

    for name, test, held_out, rows in (
        ("sst2", "dev", 1000, 10_000),
        ("trec", "test", 500, None),
        ("subj", "dev", 800, None),
        ("qnli", "dev", 463, None),
    ):
        train = read(name, "train").sample(frac=1, random_state=0)
        write(name, "dev", train[:held_out])
        write(name, "train", train[held_out:][:rows])
        write(name, "full", train[held_out:])
        write(name, "test", read(name, test))
    for name, test, rows in (("ag_news", "test", 5_000), ("stsb", "test", None), ("chnsenticorp", "test_clean", None)):
        train = read(name, "train").sample(frac=1, random_state=0)
        write(name, "train", train[:rows])
        write(name, "full", train)
        write(name, "dev", read(name, "dev"))
        write(name, "test", read(name, test))
    movie = pd.concat([pd.read_parquet(file) for file in sorted((data / "unlabeled_movie").glob("part-*"))[:2]])
    news = pd.concat([pd.read_parquet(file) for file in sorted((data / "unlabeled_news").glob("part-*"))])
    write("movie", "100k", movie[["text"]][:100_000])
    write("movie", "20k", movie[["text"]][-20_000:])
    write("movie", "10k", movie[["text"]][-10_000:])
    write("news", "all", news[["text"]].sample(frac=1, random_state=0))
    write("news", "5k", news[["text"]].sample(5_000, random_state=0))
    reviews = pd.read_parquet(data / "unlabeled_zh_reviews" / "part-00000.parquet")
    write("reviews", "10k", reviews[["text"]].sample(10_000, random_state=0))
    pairs = read("qnli", "test_unlabeled")
    write("qnli", "unlabelled", pairs[["text", "text_pair"]])
    write("questions", "all", pd.concat([pairs, read("qnli", "train")])[["text"]].drop_duplicates())
    for name, source in UNLABELLED.items():  # a folder for each set: its training text, without labels, and more
        folder = work / "data" / f"{name}-text"
        folder.mkdir(exist_ok=True)
        columns = ["text", "text_pair"] if name == "qnli" else ["text"]
        pd.read_parquet(work / "data" / f"{name}-train.parquet")[columns].to_parquet(folder / "a.parquet", index=False)
        more = pd.read_parquet(work / "data" / f"{source}.parquet")
        more.to_parquet(folder / "b.parquet", index=False)
    for name, domain in (("sst2", "movie-100k"), ("ag_news", "news-all")):  # the domain for those who bring a teacher
        folder = work / "data" / f"{name}-domain"
        folder.mkdir(exist_ok=True)
        pd.read_parquet(work / "data" / f"{name}-full.parquet")[["text"]].to_parquet(folder / "a.parquet", index=False)
        pd.read_parquet(work / "data" / f"{domain}.parquet").to_parquet(folder / "b.parquet", index=False)


def commands(backbone: str, work: Path) -> list[tuple[str, str]]:
    """All trainings, as (folder, command line without --output)."""
    data, made = work / "data", []

    def finetune(name: str, folder: str, options: str = "", split: str = "train", epochs: int = 3) -> None:
        pair = " --pair-column text_pair" if name in ("qnli", "stsb") else ""
        task = " --task regression" if name == "stsb" else f" --class-names {NAMES[name]}"
        start = f"{work}/chn-backbone" if name == "chnsenticorp" else backbone
        made.append(
            (
                f"{name}/{folder}",
                f"finetune.py --backbone {start} --train {data}/{name}-{split}.parquet --dev {data}/{name}-dev.parquet"
                f"{task}{pair} --epochs {epochs} --batch-rows 64 {options}",
            )
        )

    def distill(name: str, folder: str, teacher: str, text: str, options: str) -> None:
        pair = " --pair-column text_pair" if name in ("qnli", "stsb") else ""
        line = f"distill.py --model {work}/{name}/{teacher} --input {data}/{text}{pair} {options}"
        made.append((f"{name}/{folder}", line))

    def exits(name: str, seeds: tuple[int, ...] = SEEDS) -> None:
        """Heads on the frozen teacher: from labels, and from soft labels of training and unlabelled text."""
        attention = "teacher" if name == "stsb" else "teacher-attention"
        for head, teacher, some in (("attention", attention, seeds), ("pooled", "teacher", (0,))):
            for seed in some:
                options = f"--head {head} --seed {seed}"
                train = f"{name}-train.parquet"
                labels = f"{options} --label-column label --label-share 1"
                distill(name, f"labels-{head}-{seed}", teacher, train, f"{labels} --epochs 3")
                if name in UNLABELLED and (head == "attention" or name in ("trec", "subj")):
                    distill(name, f"soft-{head}-{seed}", teacher, f"{name}-text", f"{options} --epochs 2")

    def methods(name: str, epochs: int) -> None:
        finetune(name, "teacher", epochs=epochs)
        if name != "stsb":
            finetune(name, "teacher-attention", "--head attention", epochs=epochs)
        for strategy in ("joint", "alternating"):
            finetune(name, strategy, f"--head attention --strategy {strategy}", epochs=epochs)
        if name in ("trec", "stsb"):
            finetune(name, "joint-depth", "--head attention --strategy joint --exit-weights depth", epochs=epochs)
        if name == "trec":
            for workers, folder in ((1, "one-worker"), (2, "two-workers")):
                curve = f"--head attention --epochs 4 --batch-rows 32 --workers {workers}"
                distill(name, folder, "teacher-attention", "trec-text", curve)
            finetune(name, "joint-pooled", "--strategy joint", epochs=epochs)
            finetune(name, "joint-pooled-longer", "--strategy joint --learning-rate 3e-4", epochs=5)

    for name, limit in (("sst2", 60_000), ("ag_news", 30_000)):
        finetune(name, "byo-teacher", "--limit 20000" if name == "ag_news" else "", split="full", epochs=1)
        distill(name, "byo-frozen-attention", "byo-teacher", f"{name}-domain", "--head attention --limit 100000")
        along = f"--head attention --train-backbone joint --limit {limit}"
        distill(name, "byo-along-attention", "byo-teacher", f"{name}-domain", along)
    for name in ("trec", "subj", "qnli", "stsb"):
        methods(name, 3 if name == "trec" else 2)
        exits(name, (0,) if name == "stsb" else SEEDS)
    for name in ("sst2", "ag_news"):
        methods(name, 2)
        exits(name)
    methods("chnsenticorp", 3)
    exits("chnsenticorp", (0,))
    return made


def chinese_backbone(work: Path) -> None:
    """Write a small BERT with random weights over characters: no pretrained Chinese weights were to be had."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    folder = work / "chn-backbone"
    if (folder / "config.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    texts = pd.read_parquet(work / "data" / "chnsenticorp-train.parquet").text
    counts = pd.Series(list("".join(texts))).value_counts()
    characters = [str(c) for c, n in counts.items() if n >= 3 and not str(c).isspace()]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=256, num_hidden_layers=6, num_attention_heads=4, intermediate_size=1024,
        max_position_embeddings=64,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--only", nargs="+", default=[""], help="folders that start with these, such as trec/ sst2/byo")
    args = parser.parse_args()
    prepare(args.data, args.work)
    chinese_backbone(args.work)
    for folder, line in commands(args.backbone, args.work):
        output = args.work / folder
        if not folder.startswith(tuple(args.only)) or (
            (output / "config.json").exists() and not (output / "_checkpoint").exists()
        ):
            continue
        words = shlex.split(f"{line} --output {output}")
        print(f"$ python jobs/{shlex.join(words)}", flush=True)
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, str(JOBS / words[0]), *words[1:]], capture_output=True, text=True, check=False
        )
        output.mkdir(parents=True, exist_ok=True)
        (output / "log.txt").write_text(done.stdout + done.stderr)
        print(
            f"  {time.monotonic() - started:.0f} s, exit code {done.returncode}: {done.stdout.splitlines()[-2:]}",
            flush=True,
        )


if __name__ == "__main__":
    main()
