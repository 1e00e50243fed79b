"""Options of the jobs that send a corpus through a model, and the request that they make."""

import argparse
from functools import partial
from typing import Any

from jobs.cli import options
from models.digest import weights_digest
from models.early_exit import EarlyExitModel
from pipeline.bulk.run import BulkModel, BulkRequest
from pipeline.cluster.connect import use_endpoint
from pipeline.engine.config import DTYPE_NAMES
from pipeline.reports.run_report import REPORT
from pipeline.storage.model_cache import local_model


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a run over a corpus."""
    parser.add_argument(
        "--input", required=True, metavar="PATH", help="corpus: file, folder (recursive) or quoted glob; local or s3://"
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="DIR",
        help="folder for parts, rejects and manifest, local or s3://; made if absent",
    )
    parser.add_argument("--id-column", metavar="NAME", help="column that names a row (default: <file>:<row>)")
    parser.add_argument("--keep", nargs="+", default=[], metavar="NAME", help="columns to carry into the output")
    parser.add_argument(
        "--dtype",
        choices=DTYPE_NAMES,
        default="auto",
        help="precision; auto: bf16 where the hardware has it; int8: CPUs only, faster for wide models, a few labels differ",
    )
    parser.add_argument(
        "--actors",
        type=actor_bounds,
        metavar="N|MIN:MAX",
        help="actors (default: one a GPU, else one for 8 cores); MIN:MAX starts more where a cluster grows",
    )
    parser.add_argument(
        "--fast-tokenizer",
        action="store_true",
        help="tokenize by nanotoken (WordPiece only; needs the extra fast-tokenizer), checked against the usual tokenizer",
    )
    parser.add_argument(
        "--incremental",
        action="store_true",
        help="nightly folder: results of files that are gone from the input stay; no new file is no error",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="start over; what the output folder holds stays readable until the new results take its place",
    )
    parser.add_argument("--strict", action="store_true", help="end with exit code 1 if any row was rejected")
    parser.add_argument(
        "--endpoint-url",
        metavar="URL",
        help="S3 server other than Amazon's, for s3:// paths (default: AWS_ENDPOINT_URL)",
    )
    parser.add_argument(
        "--examples", action="store_true", help=f"show ten rows of every exit layer, with their texts, in {REPORT}"
    )
    options.add_text_options(parser)


def actor_bounds(text: str) -> tuple[int, int]:
    """Parse a number of actors, or the least and the most of them, for argparse."""
    least, colon, most = text.partition(":")
    bounds = options.positive(least), options.positive(most if colon else least)
    if bounds[0] > bounds[1]:
        raise argparse.ArgumentTypeError(f"{text}: the first number is the smaller one")
    return bounds


def open_model(args: argparse.Namespace) -> BulkModel:
    """Find the model and read all of it but its weights; raise UserError if there is none to use."""
    use_endpoint(args.endpoint_url)
    directory = local_model(args.model)
    meta = EarlyExitModel.from_config(directory)
    tokenizer = options.load_tokenizer_spec(directory, meta, args.max_tokens)
    return BulkModel(
        address=options.absolute_model(args.model),
        directory=directory,
        meta=meta,
        weights=weights_digest(directory),
        tokenizer=tokenizer.with_fast_tokenizer() if args.fast_tokenizer else tokenizer,
    )


def request_of(args: argparse.Namespace, **choices: Any) -> BulkRequest:
    """Build the request that the options make, with the job's own choices of the other fields."""
    values: dict[str, Any] = {
        "input": args.input,
        "output": args.output,
        "text_column": args.text_column,
        "pair_column": args.pair_column,
        "id_column": args.id_column,
        "keep": tuple(args.keep),
        "actors": args.actors,
        "incremental": args.incremental,
        "overwrite": args.overwrite,
        "log": partial(print, flush=True),
    }
    return BulkRequest(**(values | choices))
