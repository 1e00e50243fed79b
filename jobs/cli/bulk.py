"""What jobs share that send a corpus through a model: options, the run itself, resume, and the summary at its end."""

import argparse
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

from ray.exceptions import RayError

from jobs.cli import command, options
from models.digest import weights_digest
from models.early_exit import EarlyExitModel
from pipeline.bulk.fingerprint import fingerprint_of
from pipeline.bulk.progress import duration
from pipeline.bulk.run import Outcome, classify_corpus
from pipeline.bulk.spec import ClassifySpec
from pipeline.bulk.stages import abandon
from pipeline.calibration.audit import AuditResult, AuditSpec, Guarantee, summary
from pipeline.corpus.columns import columns_of
from pipeline.corpus.listing import list_inputs
from pipeline.corpus.tokenize import TokenizerSpec
from pipeline.engine.config import DTYPE_NAMES, EngineConfig
from pipeline.engine.engine import check_exits
from pipeline.errors import StorageError
from pipeline.output.ledger import Ledger
from pipeline.output.parts import MANIFEST, REJECTS_FOLDER, prepare_folder
from pipeline.reports.examples import examples
from pipeline.reports.run_report import REPORT, RunSummary, run_page
from pipeline.storage.locate import storage_of, use_endpoint
from pipeline.storage.model_cache import local_model


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a model is run, and what is checked."""

    engine: EngineConfig
    results: tuple[str, ...]
    """Columns that are written beside the kept ones."""
    audit: AuditSpec | None = None
    guarantee: Guarantee = field(default_factory=Guarantee)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that all these jobs take."""
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


def run(
    args: argparse.Namespace,
    make_plan: Callable[[EarlyExitModel, TokenizerSpec], Plan],
    *,
    keep: list[str],
) -> int:
    """Send the corpus through the model and return the exit code."""
    use_endpoint(args.endpoint_url)
    corpus = list_inputs(args.input, may_be_empty=args.incremental)
    if corpus.ignored:
        print(f"{len(corpus.ignored)} files of other kinds are left alone, such as {corpus.ignored[0]}")
    address, args.model = args.model, local_model(args.model)
    model = EarlyExitModel.from_config(args.model)
    tokenizer = options.load_tokenizer_spec(args.model, model, args.max_tokens)
    plan = make_plan(model, tokenizer)
    check_exits(model, plan.engine)
    if len(model.exit_layers) == 1 and not plan.engine.criterion.full_depth:
        print(f"{address} has no exits, so every row runs at full depth; jobs/distill.py adds them")
    columns = {"text": args.text_column, "pair": args.pair_column, "id_column": args.id_column}
    output = prepare_folder(args.output, args.input)
    print(f"{len(corpus.files):,} files, {corpus.size / 1e6:,.1f} MB -> {output}")
    weights = weights_digest(args.model)
    fingerprint = fingerprint_of(model, weights, plan.engine, tokenizer, columns=columns, schema=[*plan.results, *keep])
    with Ledger(output, fingerprint, overwrite=args.overwrite) as ledger:
        left = ledger.unfinished(corpus.files, keep_gone=args.incremental)
        if not left and (ledger.published() or ledger.schema is None):
            ledger.finish()
            print(f"nothing to do: {output} already holds the results of every file")
            return command.DONE
        spec = ClassifySpec(
            columns=columns_of(corpus, ledger.schema, **columns, keep=keep, results=plan.results),
            tokenizer=tokenizer,
            model=options.absolute_model(address),
            weights=weights,
            engine=plan.engine,
            output=ledger.output,
            results=plan.results,
            audit=plan.audit,
        )
        EarlyExitModel.from_pretrained(args.model)  # what is wrong with it is said here, once, and not by every actor
        try:
            outcome = classify_corpus(corpus, left, spec, ledger, plan.guarantee, actors=args.actors)
        except (RayError, StorageError) as error:
            raise command.FailedError(f"{command.cause_of(error)}\n{kept(ledger)}") from error
        except (SystemExit, KeyboardInterrupt):
            print(f"stopped: {kept(ledger)}", flush=True)
            abandon(spec)
            raise
    page = run_page(
        RunSummary(
            folder=output,
            fingerprint=fingerprint,
            files=len(corpus.files),
            input_bytes=corpus.size,
            seconds=outcome.seconds,
            totals=outcome.totals,
            fresh=outcome.fresh,
            timeline=outcome.timeline,
            found=outcome.found,
            examples=examples(corpus.files, spec.columns, ledger.output) if args.examples else None,
        )
    )
    storage_of(output).write(f"{output}/{REPORT}", page.encode())
    report(outcome, output)
    if outcome.manifest is None:
        raise command.FailedError(withheld(outcome.found))
    rejected = outcome.totals.rows_rejected + len(outcome.totals.unreadable)
    return command.FAILED if args.strict and rejected else command.DONE


def kept(ledger: Ledger) -> str:
    """Say what a run that did not end has left."""
    with contextlib.suppress(StorageError):
        ledger.flush()
    done = ledger.totals()
    return f"{done.rows_in:,} rows in {done.shards:,} shards are kept; the same command goes on from there"


def withheld(found: AuditResult) -> str:
    """Say why nothing was published."""
    why = f"{found.differing:,} of {found.rows:,} audited rows differ from full depth"
    drift = f", and drift in {', '.join(found.alarms)}" if found.alarms else ""
    return f"not published: {why}{drift}. Calibrate on such rows, or run the same command without --audit-fail"


def report(outcome: Outcome, output: str) -> None:
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
    for line in summary(outcome.found):
        print(f"  {line}")
    print(f"  CPU time     {busy}")
    print(f"  peak MB      {memory}, driver {outcome.driver_peak_mb:,.0f}")
    if totals.rejected or totals.unreadable:
        print(f"rejects are in {output}/{REJECTS_FOLDER}, with reasons")
    if outcome.manifest is not None:
        print(f"results are in {output}, listed in {MANIFEST}, told of in {REPORT}")
