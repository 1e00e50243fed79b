#!/usr/bin/env python
"""Fine-tune a Hugging Face encoder into a classifier: the teacher whose exits are distilled next.

Trains the backbone and the last head on labelled text (cross-entropy) and keeps the best epoch by dev accuracy.

  python jobs/finetune.py --backbone bert-base-uncased --train train.parquet --dev dev.parquet --output my-teacher
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse

import torch

from jobs import command, options
from models.early_exit import EarlyExitModel
from pipeline.labelled import read_texts, tokenise_texts
from pipeline.training import accuracy_by_exit, finetune


def main(args: argparse.Namespace) -> None:
    columns = options.text_columns(args, args.label_column)
    train_texts = read_texts(args.train, columns, args.limit)
    classes = options.class_names(train_texts, args.class_names)
    torch.manual_seed(args.seed)
    model = EarlyExitModel.from_pretrained(
        args.backbone, new_labels=classes, new_last_head="attention" if args.head == "attention" else "classifier"
    )
    tokeniser = options.load_tokeniser(args.backbone, model, args.max_tokens)
    train = tokenise_texts(train_texts, tokeniser, classes)
    if args.dev:
        dev = tokenise_texts(read_texts(args.dev, columns), tokeniser, classes)
    else:
        train, dev = options.hold_out(train, args.seed)
    print(
        f"{args.backbone}: {model.shape.layers} layers, {len(classes)} classes; {len(train):,} rows, {len(dev):,} dev"
    )
    finetune(model, train, dev, options.training_config(args))
    options.save_model(model, args.backbone, args.output)
    print(f"dev accuracy {accuracy_by_exit(model, dev)[model.shape.layers]:.4f}; the model is in {args.output}")


parser = command.new_parser(__doc__)
parser.add_argument("--backbone", required=True, metavar="MODEL", help="hub id or directory of a pretrained encoder")
parser.add_argument("--train", required=True, metavar="PATH", help="labelled rows: file, folder or glob")
parser.add_argument("--dev", metavar="PATH", help="labelled rows to choose the epoch by (default: a tenth of --train)")
parser.add_argument("--output", required=True, metavar="DIR", help="directory to write the model to")
parser.add_argument("--label-column", default="label", metavar="NAME", help="column of the label: a name or an index")
parser.add_argument("--class-names", metavar="A,B,...|FILE", help="names by index, or a JSON file that lists them")
parser.add_argument("--head", choices=["pooled", "attention"], default="pooled", help="kind of the last head")
parser.add_argument("--limit", type=options.positive, metavar="N", help="use the first N rows of --train only")
options.add_text_options(parser)
options.add_training_options(parser, epochs=3, batch=64, rate=1e-4)

if __name__ == "__main__":
    command.run(main, parser)
