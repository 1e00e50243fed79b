"""Options of the jobs that send a corpus through a model, and the order in which such a job starts."""

import argparse
import gc
import glob
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from jobs.cli import options
from jobs.cli.command import print_line
from pipeline.engine.config import DTYPE_NAMES
from pipeline.errors import require
from pipeline.storage.base import absolute, is_remote
from pipeline.storage.locate import storage_of, use_endpoint

Request = TypeVar("Request")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a run over a corpus."""
    parser.add_argument(
        "--input",
        required=True,
        metavar="PATH",
        help="corpus: file, folder (recursive), quoted glob, Delta table or saved data set; local or s3://",
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="DIR",
        help="folder for parts, rejects and manifest, local or s3://; made if absent",
    )
    parser.add_argument("--id-column", metavar="NAME", help="column that names a row (default: <file>:<row>)")
    parser.add_argument(
        "--keep",
        nargs="+",
        default=[],
        metavar="NAME[=AS]",
        help="columns to carry into the output; lang=tongue writes lang as tongue, doc.lang is written as lang, and folders "
        "lang=de/ are a column lang",
    )
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
    options.add_wait_option(parser)
    parser.add_argument(
        "--bundle-rows",
        type=options.positive,
        metavar="N",
        help="rows that go through the model together and into one part, about (default: 16,384; on a GPU 65,536)",
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
    parser.add_argument(
        "--plan",
        action="store_true",
        help="say what the run would do and how long it would take, by a sample of the corpus; no results are written",
    )
    parser.add_argument(
        "--table",
        choices=("delta",),
        help="make the output a Delta table too, for Spark, DuckDB, Polars: what a run publishes is a version in _delta_log, "
        "over the same files; later runs keep it up, with this option or without (needs the extra delta)",
    )
    parser.add_argument("--strict", action="store_true", help="end with exit code 1 if any row was rejected")
    parser.add_argument(
        "--endpoint-url",
        metavar="URL",
        help="S3 server other than Amazon's, for s3:// paths (default: AWS_ENDPOINT_URL)",
    )
    parser.add_argument(
        "--examples", action="store_true", help="show ten rows of every exit layer, with their texts, in _report.html"
    )
    options.add_text_options(parser)


def actor_bounds(text: str) -> tuple[int, int]:
    """Parse a number of actors, or the least and the most of them, for argparse."""
    least, colon, most = text.partition(":")
    bounds = options.positive(least), options.positive(most if colon else least)
    if bounds[0] > bounds[1]:
        raise argparse.ArgumentTypeError(f"{text}: the first number is the smaller one")
    return bounds


def beside_ray(args: argparse.Namespace, request_of: Callable[[argparse.Namespace], Request]) -> Request:
    """Return the request of a job, made in another thread while Ray starts in this one.

    Ray takes seconds to start, mostly in processes of its own, and so do torch and the model's configuration to load. A run
    that may have nothing to do is left to start Ray once that is known.
    """
    if args.table:
        require("deltalake", extra="delta")
    use_endpoint(args.endpoint_url)
    gc.disable()  # nearly all that is loaded stays: to look through it again and again takes a sixth of the time
    try:
        return _beside_ray(args, request_of) if expects_work(args) else request_of(args)
    finally:
        gc.freeze()
        gc.enable()


def _beside_ray(args: argparse.Namespace, request_of: Callable[[argparse.Namespace], Request]) -> Request:
    from pipeline.cluster.connect import join_or_start  # before the rest: Ray's processes take the longest

    pool = ThreadPoolExecutor(1, thread_name_prefix="request")
    try:
        request = pool.submit(request_of, args)
        join_or_start(print_line)
        return request.result()
    finally:
        pool.shutdown(wait=False)  # a signal ends the process, whatever is being loaded


def expects_work(args: argparse.Namespace) -> bool:
    """Return whether Ray will be needed, as far as paths tell: model and input are there, and the output is not published.

    Where a table is asked for, columns that it cannot have are found first.
    """
    model = os.path.exists(os.path.join(args.model, "config.json")) or not args.model.startswith((".", "/", "~"))
    corpus = absolute(args.input)
    if args.table or not model or not (is_remote(corpus) or os.path.exists(corpus) or next(glob.iglob(corpus), None)):
        return False
    output = absolute(args.output)
    if args.overwrite or not (is_remote(output) or os.path.exists(output)):
        return True
    from pipeline.output.parts import MANIFEST  # loads Arrow

    return storage_of(output).stat(f"{output}/{MANIFEST}") is None
