#!/usr/bin/env python
"""Report quality against cost on labelled text: a table over speeds, as Markdown.

Every row goes through every exit once; what each speed would do follows from that. Precision is that of classify.py on this
machine.

  python jobs/evaluate.py --model my-model --data test.parquet --speeds 0.1 0.3 0.5
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse

import torch

from jobs import command, options
from models.early_exit import EarlyExitModel
from models.precision import set_precision
from pipeline.config import DTYPE_NAMES
from pipeline.engine import default_token_budget
from pipeline.evaluation import at_speed, markdown_table, record_all_exits
from pipeline.labelled import read_texts, tokenise_texts


def main(args: argparse.Namespace) -> None:
    model = EarlyExitModel.from_pretrained(args.model)
    tokeniser = options.load_tokeniser(args.model, model, args.max_tokens)
    texts = read_texts(args.data, options.text_columns(args, args.label_column))
    examples = tokenise_texts(texts, tokeniser, model.labels)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = set_precision(model, args.dtype, device, default_token_budget(device, model.shape.hidden))
    recorded = record_all_exits(model, examples)
    speeds = [0.0, *(speed for speed in args.speeds if speed > 0)]
    print(f"{len(examples):,} rows, {texts.rejected:,} without usable text; {dtype} on {device.type}\n")
    print(markdown_table([at_speed(model, examples, recorded, speed) for speed in speeds]))


parser = command.new_parser(__doc__)
parser.add_argument("--model", required=True, metavar="MODEL", help="early-exit model: hub id or directory")
parser.add_argument("--data", required=True, metavar="PATH", help="labelled rows: file, folder or glob")
parser.add_argument("--label-column", default="label", metavar="NAME", help="column of the label: a name or an index")
parser.add_argument(
    "--speeds", type=float, nargs="+", default=[n / 10 for n in range(1, 10)], metavar="S", help="speeds to report"
)
parser.add_argument("--dtype", choices=DTYPE_NAMES, default="auto", help="precision of the matrices")
options.add_text_options(parser)

if __name__ == "__main__":
    command.run(main, parser)
