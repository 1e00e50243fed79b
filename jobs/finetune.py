#!/usr/bin/env python
"""Fine-tune a Hugging Face encoder into a classifier, or into an early-exit model at once.

Without --strategy it trains the backbone and the last head on labelled text: a teacher, whose exits jobs/distill.py makes from
unlabelled text. With --strategy all exits learn from the labels:

  two-stage     backbone and last head first, then the other heads on the frozen backbone (DeeBERT)
  joint         everything at once (BERxiT; with --exit-weights depth as PABEE does)
  alternating   last head and joint in turn (BERxiT)

The best epoch by dev score is kept. A killed run goes on with the same command.

  python jobs/finetune.py --backbone bert-base-uncased --train train.parquet --dev dev.parquet --output my-teacher
  python jobs/finetune.py --backbone bert-base-uncased --train train.parquet --output my-model --strategy alternating
  python jobs/finetune.py --backbone bert-base-uncased --train pairs.csv --pair-column b --task regression --output scorer
"""

import sys
from pathlib import Path

if not __package__:  # run as a file: the packages are beside its folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
from functools import partial

from jobs.cli import command, options, training
from jobs.cli.parser import JobParser
from models.early_exit import HEAD_KINDS, EarlyExitModel
from pipeline.corpus.labelled import read_texts, tokenize_texts
from pipeline.training.finetune import FINETUNE_STRATEGIES, FinetuneSpec, finetune, read_labelled, split_off_dev


def main(args: argparse.Namespace) -> int:
    """Read the labelled text, and fine-tune; return the exit code."""
    columns, regression = options.text_columns(args, args.label_column), args.task == "regression"
    texts, classes = read_labelled(args.train, columns, args.limit, regression=regression, class_names=args.class_names)
    model = EarlyExitModel.from_pretrained(args.backbone, new_labels=classes)
    tokenizer = options.load_tokenizer(args.backbone, model, args.max_tokens)
    train = tokenize_texts(texts, tokenizer, classes)
    if args.dev:
        dev = tokenize_texts(read_texts(args.dev, columns), tokenizer, classes)
    else:
        train, dev = split_off_dev(train, args.seed)
    spec = FinetuneSpec(
        backbone=options.absolute_model(args.backbone),
        classes=classes,
        head=args.head,
        strategy=args.strategy,
        exit_weights=args.exit_weights,
        train=train,
        dev=dev,
        output=training.output_folder(args),
        training=training.config(args, early_stopping=args.early_stopping, head_learning_rate=args.head_learning_rate),
        second_stage=training.config(args, learning_rate=args.head_learning_rate),
    )
    kind = "one value" if regression else f"{len(classes)} classes"
    about = f"{args.backbone}: {model.shape.layers} layers, {kind}; {len(train):,} rows, {len(dev):,} dev"
    del model
    return training.run(args, partial(finetune, spec), tokenizer_from=args.backbone, about=about)


def build_parser() -> JobParser:
    """Make the job's parser."""
    parser = JobParser(__doc__, kept="the same command goes on from the last checkpoint")
    parser.add_argument("--backbone", required=True, metavar="MODEL", help="pretrained encoder: hub id or directory")
    parser.add_argument("--train", required=True, metavar="PATH", help="labelled rows: file, folder or glob")
    parser.add_argument(
        "--dev", metavar="PATH", help="labelled rows to choose the epoch by (default: a tenth of --train)"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="directory to write the model to")
    parser.add_argument(
        "--label-column", default="label", metavar="NAME", help="column of the label: a name or an index"
    )
    parser.add_argument(
        "--task", choices=["classification", "regression"], default="classification", help="kind of label"
    )
    parser.add_argument("--class-names", metavar="A,B,...|FILE", help="names by index, or a JSON file that lists them")
    parser.add_argument("--head", choices=HEAD_KINDS, default="pooled", help="kind of the heads")
    parser.add_argument("--strategy", choices=FINETUNE_STRATEGIES, help="train all exits, in this way")
    parser.add_argument(
        "--exit-weights",
        choices=["equal", "depth"],
        default="equal",
        help="weights of the exits' losses in joint steps",
    )
    parser.add_argument(
        "--early-stopping", type=options.positive, metavar="N", help="stop after N epochs without a better dev score"
    )
    parser.add_argument("--limit", type=options.positive, metavar="N", help="use the first N rows of --train only")
    options.add_text_options(parser)
    training.add_options(parser, epochs=3, batch=64, rate=1e-4)
    return parser


if __name__ == "__main__":
    command.run_alone(main, build_parser())
