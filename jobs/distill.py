#!/usr/bin/env python
"""Distil the exits of a classifier from its own answers (FastBERT's self-distillation). No labels are read.

Puts a head on every layer, freezes the backbone, and trains all heads at once to give the last exit's soft labels. Any text of
the domain will do, and more of it helps.

  python jobs/distill.py --model my-teacher --input unlabelled/ --output my-model --head pooled
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse

import torch

from jobs import command, options
from models.early_exit import HEAD_KINDS, EarlyExitModel
from pipeline.labelled import read_texts, tokenise_texts
from pipeline.training import agreement_by_exit, distill


def main(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    model = EarlyExitModel.from_pretrained(args.model)
    model.add_exits(args.head)
    tokeniser = options.load_tokeniser(args.model, model, args.max_tokens)
    columns = options.text_columns(args, label=None)
    train = tokenise_texts(read_texts(args.input, columns, args.limit), tokeniser)
    if args.dev:
        dev = tokenise_texts(read_texts(args.dev, columns), tokeniser)
    else:
        train, dev = options.hold_out(train, args.seed)
    print(f"{args.model}: {args.head} heads on {model.shape.layers - 1} layers; {len(train):,} rows, {len(dev):,} dev")
    distill(model, train.rows, dev.rows, options.training_config(args))
    options.save_model(model, args.model, args.output)
    agreement = agreement_by_exit(model, dev.rows)
    print("agreement with full depth by exit: " + ", ".join(f"{n}: {share:.3f}" for n, share in agreement.items()))
    print(f"the model is in {args.output}")


parser = command.new_parser(__doc__)
parser.add_argument("--model", required=True, metavar="MODEL", help="fine-tuned classifier: hub id or directory")
parser.add_argument("--input", required=True, metavar="PATH", help="text of the domain: file, folder or glob")
parser.add_argument("--dev", metavar="PATH", help="text to choose the epoch by (default: a tenth of --input)")
parser.add_argument("--output", required=True, metavar="DIR", help="directory to write the early-exit model to")
parser.add_argument("--head", choices=HEAD_KINDS, default="pooled", help="kind of the exit heads")
parser.add_argument("--limit", type=options.positive, metavar="N", help="use the first N rows of --input only")
options.add_text_options(parser)
options.add_training_options(parser, epochs=3, batch=128, rate=1e-3)

if __name__ == "__main__":
    command.run(main, parser)
