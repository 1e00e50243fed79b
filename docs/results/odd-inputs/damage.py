#!/usr/bin/env python
"""Damage a folder that is published and half added to, at random, and run on: to all rows, or to one line with a way out.

Up to three of its notes, parts and rejects are cut, emptied, zeroed, swapped, deleted, or have bits or JSON values changed.
A run then ends with every row once, or is refused with a line after which overwriting does. What a damaged part holds is left
to its readers: with one, only the run is looked at.

  python docs/results/odd-inputs/damage.py --tries 2000 --seed 0
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import argparse
import json
import random
import shutil
import tempfile
from collections import Counter

from pipeline.corpus.listing import Corpus
from pipeline.errors import UserError
from pipeline.output.ledger import Ledger
from tests.support.ledger import (
    FINGERPRINT,
    OTHER,
    SCHEMA,
    finish,
    make_corpus,
    make_folder,
    read_all,
    receipt,
    run_all,
)

ROWS = sorted(f"{name}.txt:{row}" for name in "abc" for row in range(30))
KINDS = ("cut", "empty", "zeros", "bits", "append", "swap", "delete", "value")
VALUES: tuple[object, ...] = (None, 0, -1, "x", [], {}, 1e300, True, "\ud800")


def prepare(folder: str, corpus: Corpus) -> None:
    """Publish a file, publish another beside it, and stop in the middle of a third."""
    for files in (1, 2):
        run_all(folder, Corpus(corpus.files[:files]), FINGERPRINT)
    with Ledger(folder, FINGERPRINT) as ledger:
        ledger.begin(SCHEMA)
        finish(ledger, receipt(corpus, 2, 0, 20, last=False))


def damaged(data: bytes, kind: str, other: bytes, source: random.Random) -> bytes:
    """Return the content of a file after damage of some kind; `other` is that of another file."""
    if kind == "value":
        try:
            facts = json.loads(data)
            facts[source.choice([*facts])] = source.choice(VALUES)
            return json.dumps(facts).encode()
        except (ValueError, TypeError, IndexError):
            return data
    if kind == "bits":
        changed = bytearray(data)
        for _ in range(source.choice([1, 1, 3, 20]) if data else 0):
            changed[source.randrange(len(data))] ^= 1 << source.randrange(8)
        return bytes(changed)
    cut = source.randrange(len(data) + 1)
    by_kind = {"cut": data[:cut], "empty": b"", "zeros": bytes(len(data)), "append": data + b"x" * 9, "swap": other}
    return by_kind[kind]


def damage(folder: Path, source: random.Random) -> list[tuple[str, str]]:
    """Damage up to three files; return how, and which."""
    done = []
    for _ in range(source.choice([1, 1, 1, 2, 3])):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        path, other, kind = source.choice(files), source.choice(files), source.choice(KINDS)
        if kind == "delete":
            path.unlink()
        else:
            path.write_bytes(damaged(path.read_bytes(), kind, other.read_bytes(), source))
        done.append((kind, str(path.relative_to(folder))))
    return done


def outcome(folder: str, corpus: Corpus, *, readable: bool) -> str:
    """Run on, and overwrite if that is refused; return how it ended."""
    try:
        run_all(folder, corpus, FINGERPRINT)
        if readable and read_all(folder)[0] != ROWS:
            return "WRONG ROWS"
    except UserError as refusal:
        if not str(refusal).isprintable():
            return "MORE THAN ONE LINE"
        if "another version of offramp" in str(refusal):  # a changed version number: another folder is the way out
            return "refused, another version"
        run_all(folder, corpus, OTHER, overwrite=True)
        return "refused, and overwritten" if read_all(folder)[0] == ROWS else "WRONG ROWS AFTER OVERWRITING"
    return "all rows" if readable else "went on beside a damaged part"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        corpus, folder = make_corpus(scratch, ("a.txt", "b.txt", "c.txt")), make_folder(scratch)
        prepare(folder, corpus)
        whole = shutil.copytree(folder, f"{scratch}/whole")
        for number in range(args.tries):
            shutil.rmtree(folder)
            shutil.copytree(whole, folder)
            done = damage(Path(folder), random.Random(f"{args.seed}-{number}"))
            readable = not any("part-" in name and kind != "delete" for kind, name in done)
            try:
                ended = outcome(folder, corpus, readable=readable)
            except Exception as error:
                ended = f"{type(error).__name__.upper()}: {error}"
            counts[ended] += 1
            if ended.split(":")[0].isupper():
                print(number, done, ended)
    for ended, count in counts.most_common():
        print(f"| {ended} | {count:,} |")


if __name__ == "__main__":
    main()
