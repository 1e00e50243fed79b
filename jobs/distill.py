#!/usr/bin/env python
"""Give a classifier exits that learn from its own predictions on unlabelled text (FastBERT's self-distillation).

No true label is needed. A head on every layer is trained to predict the last exit's soft labels. Any text of the domain will
do, and more of it helps. The text streams through, in one pass or more, and is not kept: a corpus may be of any size.

  --input    text: the model labels it on the way
  --labels   output of jobs/label.py: the same without running the last layer again, or with another teacher's labels

The backbone is frozen, so the full-depth predictions stay what they were. With --train-backbone a copy of the whole model is
trained on the soft labels: lower layers become useful earlier, and the last exit changes a little.

A killed run goes on with the same command.

  python jobs/distill.py --model my-teacher --input unlabelled/ --output my-model --head attention
  python jobs/distill.py --model my-teacher --labels soft-labels/ --output my-model --train-backbone joint --epochs 2
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
from pipeline.cluster.connect import join_or_start
from pipeline.corpus.columns import resolve_columns
from pipeline.corpus.labelled import read_texts, tokenize_texts
from pipeline.corpus.listing import list_inputs
from pipeline.corpus.tokenize import Tokenizer, TokenizerSpec
from pipeline.errors import UserError
from pipeline.output.results import results_as_corpus
from pipeline.schema import LOGITS
from pipeline.storage.model_cache import local_model
from pipeline.training.distill import DistillSpec, distill
from pipeline.training.recipes import STRATEGIES
from pipeline.training.stream import StreamSpec


def main(args: argparse.Namespace) -> int:
    """Compose the stream of text or soft labels, and distill; return the exit code."""
    if (args.input is None) == (args.labels is None):
        raise UserError("give either --input (text) or --labels (output of jobs/label.py)")
    directory = local_model(args.model)
    model = EarlyExitModel.from_pretrained(directory)
    tokenizer = options.load_tokenizer_spec(directory, model, args.max_tokens)
    dev = read_texts(args.dev, options.text_columns(args, None)) if args.dev else None
    stream = stream_of(args, model, tokenizer)
    spec = DistillSpec(
        model=options.absolute_model(args.model),
        head=args.head,
        stream=stream,
        dev=None if dev is None else tokenize_texts(dev, Tokenizer(tokenizer), model.labels),
        output=training.output_folder(args),
        training=training.config(args, head_learning_rate=args.head_learning_rate),
        temperature=args.temperature,
        label_weight=args.label_share if args.label_column else 0.0,
        train_backbone=args.train_backbone,
    )
    what = f"backbone and exits, {args.train_backbone}" if args.train_backbone else "exits on a frozen backbone"
    heads = f"{args.head} heads on {model.shape.layers - 1} layers"
    del model
    join_or_start()
    return training.run(
        args,
        partial(distill, spec),
        tokenizer_from=directory,
        about=f"{args.model}: {what}; {heads}; {len(stream.corpus.files):,} files",
        model=directory,
    )


def stream_of(args: argparse.Namespace, model: EarlyExitModel, tokenizer: TokenizerSpec) -> StreamSpec:
    """Find the files of the stream and their columns."""
    corpus = results_as_corpus(args.labels) if args.labels else list_inputs(args.input)
    names = options.text_columns(args, args.label_column)
    columns = resolve_columns(corpus.files, names, keep=[LOGITS] if args.labels else [])
    return StreamSpec(
        corpus=corpus,
        columns=columns,
        tokenizer=tokenizer,
        classes=model.labels,
        label_column=args.label_column,
        limit=args.limit,
        seed=args.seed,
    )


def build_parser() -> JobParser:
    """Make the job's parser."""
    parser = JobParser(__doc__, kept="the same command goes on from the last checkpoint")
    parser.add_argument("--model", required=True, metavar="MODEL", help="classifier: hub id, directory or s3://")
    parser.add_argument("--input", metavar="PATH", help="text of the domain: file, folder or glob")
    parser.add_argument("--labels", metavar="DIR", help="output folder of jobs/label.py")
    parser.add_argument(
        "--dev", metavar="PATH", help="text to score epochs by (default: held out at the stream's start)"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="directory to write the early-exit model to")
    parser.add_argument("--head", choices=HEAD_KINDS, default="pooled", help="kind of the exit heads")
    parser.add_argument(
        "--train-backbone", choices=STRATEGIES, metavar="HOW", help="joint or alternating (default: frozen)"
    )
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="soften teacher and exits alike")
    parser.add_argument("--label-column", metavar="NAME", help="column of true labels to mix in where a row has one")
    parser.add_argument(
        "--label-share", type=float, default=0.5, metavar="A", help="weight of a true label, with --label-column"
    )
    parser.add_argument("--limit", type=options.positive, metavar="N", help="rows to read in an epoch at most")
    options.add_text_options(parser)
    training.add_options(parser, epochs=1, batch=128, rate=1e-4)
    return parser


if __name__ == "__main__":
    command.run_alone(main, build_parser())
