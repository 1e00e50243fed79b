#!/usr/bin/env python
"""Classify a corpus: easy texts leave the network early, every row lands once in Parquet.

Reads Parquet, JSONL, CSV, TSV or text lines (.gz and .zst too), streams them through a pool of actors on Ray, and writes
part-*.parquet with label, score, exit layer and uncertainty, _rejects/ with what could not be used and why, and at the end
_manifest.json. The same command again goes on where a stopped run ended, and does nothing when all is done.

  python jobs/classify.py --model my-model --input corpus/ --output out/ --speed 0.3
  python jobs/classify.py --model my-model --input 'logs/*.jsonl.gz' --output out/ --text-column message --keep user
  ray job submit --working-dir . -- python jobs/classify.py --config nightly.toml

Exit codes: 0 done, 1 the work failed (run the same command to go on), 2 the command or its input is wrong.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import re

from ray.exceptions import RayError

from jobs import command, options
from models.early_exit import EarlyExitModel
from models.families import UnsupportedModelError
from pipeline.classification import Outcome, classify_corpus, fingerprint_of, resolve_columns
from pipeline.cluster import DoesNotFitError
from pipeline.config import DTYPE_NAMES, EngineConfig
from pipeline.engine import check_exits
from pipeline.errors import UserError
from pipeline.inputs import list_inputs
from pipeline.ledger import Ledger
from pipeline.output import REJECTS_FOLDER, prepare_folder
from pipeline.progress import duration
from pipeline.stages import ClassifySpec


def main(args: argparse.Namespace) -> int:
    corpus = list_inputs(args.input)
    if corpus.ignored:
        print(f"{len(corpus.ignored)} files of other kinds are left alone, such as {corpus.ignored[0]}")
    columns = resolve_columns(
        corpus, text=args.text_column, pair=args.pair_column, id_column=args.id_column, keep=args.keep
    )
    try:
        engine = EngineConfig(speed=args.speed, exits=tuple(args.exits) if args.exits else None, dtype=args.dtype)
        model = EarlyExitModel.from_pretrained(args.model)
        check_exits(model, engine)
    except UnsupportedModelError:
        raise
    except ValueError as error:
        raise UserError(f"--{error}") from error
    if len(model.exit_layers) == 1 and args.speed > 0:
        print(f"{args.model} has no exits, so every row runs at full depth; jobs/distill.py adds them")
    tokeniser = options.load_tokeniser_spec(args.model, model, args.max_tokens)
    output = prepare_folder(args.output, args.input)
    spec = ClassifySpec(
        columns=columns,
        tokeniser=tokeniser,
        model=options.absolute_model(args.model),
        engine=engine,
        output=output,
        probabilities=args.probabilities,
    )
    fingerprint = fingerprint_of(model, spec)
    del model
    print(f"{len(corpus.files):,} files, {corpus.size / 1e6:,.1f} MB -> {output}")
    with Ledger(output, fingerprint, overwrite=args.overwrite) as ledger:
        try:
            outcome = classify_corpus(corpus, spec, ledger, actors=args.actors)
        except DoesNotFitError as error:
            print(f"{parser.prog}: error: {error}", file=sys.stderr)
            return command.FAILED
        except RayError as error:
            print(f"{parser.prog}: error: {cause_of(error)}\n{kept(ledger)}", file=sys.stderr)
            return command.FAILED
        except (SystemExit, KeyboardInterrupt):
            print(f"stopped: {kept(ledger)}")
            raise
    if outcome is None:
        print(f"nothing to do: {output} already holds the results of every file")
        return command.DONE
    report(outcome, output)
    rejected = outcome.totals.rows_rejected + len(outcome.totals.unreadable)
    return command.FAILED if args.strict and rejected else command.DONE


def kept(ledger: Ledger) -> str:
    """Say what a run that did not end has left."""
    done = ledger.totals()
    return f"{done.rows_in:,} rows in {done.shards:,} shards are kept; the same command goes on from there"


def cause_of(error: RayError) -> str:
    """Return the line of a failed task or actor that says why: the first exception that is not one of Ray's wrappers."""
    raised = re.findall(r"^([\w.]*(?:Error|Exception)): (.+)$", str(error), re.MULTILINE)
    causes = [f"{name}: {text}" for name, text in raised if not name.startswith("ray.") and name != "UserCodeException"]
    return causes[0] if causes else f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"


def report(outcome: Outcome, output: Path) -> None:
    """Print the summary."""
    totals, fresh = outcome.totals, outcome.fresh
    busy = ", ".join(f"{stage} {seconds:,.1f} s" for stage, seconds in fresh.cpu_seconds.items())
    memory = ", ".join(f"{stage} {peak:,.0f}" for stage, peak in fresh.peak_mb.items())
    print(f"\n{fresh.rows_in:,} rows in {duration(outcome.seconds)}: {fresh.rows_in / outcome.seconds:,.0f} rows/s")
    print(f"  out          {totals.rows_out:,} rows in {totals.shards:,} parts")
    print(f"  rejects      {totals.rows_rejected:,} rows" + "".join(f", {n:,} {r}" for r, n in totals.rejected.items()))
    for file, problem in list(totals.unreadable.items())[:10]:
        print(f"  unreadable   {file}: {problem}")
    print(f"  truncated    {totals.truncated:,} rows")
    print(f"  exits        {' '.join(f'{layer}:{n:,}' for layer, n in enumerate(totals.exits, start=1) if n)}")
    print(
        f"  mean exit    {totals.mean_exit_layer:.2f} of {len(totals.exits)} layers, {totals.flops_speedup:.2f}x fewer FLOPs"
    )
    print(f"  CPU time     {busy}")
    print(f"  peak MB      {memory}, driver {outcome.driver_peak_mb:,.0f}")
    if totals.rejected or totals.unreadable:
        print(f"rejects are in {output / REJECTS_FOLDER}, with reasons")
    print(f"results are in {output}, listed in {outcome.manifest.name}")


parser = command.new_parser(__doc__)
parser.add_argument(
    "--model", required=True, metavar="MODEL", help="early-exit model or any classifier: hub id or directory"
)
parser.add_argument("--input", required=True, metavar="PATH", help="corpus: file, folder (recursive) or quoted glob")
parser.add_argument(
    "--output", required=True, metavar="DIR", help="folder for parts, rejects and manifest; made if absent"
)
parser.add_argument(
    "--speed",
    type=float,
    default=0.1,
    metavar="S",
    help="leave when the uncertainty is at most S: 0 full depth, 1 fastest",
)
parser.add_argument(
    "--exits",
    type=options.positive,
    nargs="+",
    metavar="LAYER",
    help="look at the exits after these layers only (default: all); jobs/evaluate.py says which of them pay",
)
parser.add_argument("--id-column", metavar="NAME", help="column that names a row (default: <file>:<row>)")
parser.add_argument("--keep", nargs="+", default=[], metavar="NAME", help="columns to carry into the output")
parser.add_argument("--probabilities", action="store_true", help="write the probabilities of all classes too")
parser.add_argument(
    "--dtype",
    choices=DTYPE_NAMES,
    default="auto",
    help="precision; auto: bf16 where the hardware has it; int8: faster on CPUs for wide models, labels differ a little",
)
parser.add_argument(
    "--actors", type=options.positive, metavar="N", help="classify actors (default: one a GPU, else one for 8 cores)"
)
parser.add_argument("--overwrite", action="store_true", help="drop what the output folder holds and start over")
parser.add_argument("--strict", action="store_true", help="end with exit code 1 if any row was rejected")
options.add_text_options(parser)

if __name__ == "__main__":
    command.run(main, parser)
