"""Make and run the bulk request of a job: the model, what is printed, the report, and the exit code."""

import argparse
import time
from typing import Any

import psutil

from jobs.cli import command
from jobs.cli.command import print_line
from jobs.work import loading
from models.directory.digest import weights_digest
from models.early_exit import EarlyExitModel
from pipeline.api.pretrained import load_tokenizer_spec
from pipeline.bulk.forecast import Forecast, forecast_of
from pipeline.bulk.progress import duration
from pipeline.bulk.run import FAILURES, BulkModel, BulkRequest, Outcome, UnfinishedRunError, run_bulk
from pipeline.calibration.limits.audited import over_classes
from pipeline.calibration.summary import over_all_nights, summary
from pipeline.calibration.verdict import AuditResult
from pipeline.errors import InputError
from pipeline.output.parts import MANIFEST, REJECTS_FOLDER
from pipeline.reports.examples import examples
from pipeline.reports.run_report import REPORT, RunSummary, run_page
from pipeline.storage.base import absolute
from pipeline.storage.locate import storage_of

UNREADABLE_SHOWN = 10
"""Unreadable files that the summary names; the report names more, and the rejects have all."""


def open_model(args: argparse.Namespace) -> BulkModel:
    """Find the model and read all of it but its weights; raise UserError if there is none to use."""
    directory = loading.find_model(args.model)
    meta = EarlyExitModel.from_config(directory)
    for number, label in enumerate(meta.labels):
        if not label.isascii() and label != label.encode(errors="ignore").decode():
            raise InputError("model", f"{args.model}: the name of class {number}, {label!r}, is no Unicode text")
    tokenizer = load_tokenizer_spec(directory, meta, args.max_tokens)
    return BulkModel(
        address=loading.absolute_model(args.model),
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
        "wait_for": dict(args.wait_for),
        "bundle_rows": args.bundle_rows,
        "incremental": args.incremental,
        "overwrite": args.overwrite,
        "table": args.table,
        "log": print_line,
    }
    return BulkRequest(**(values | choices))


def run(args: argparse.Namespace, request: BulkRequest) -> int:
    """Run the request and report on it; return the exit code, or raise FailedError if the run failed or was withheld."""
    model, engine = request.model.meta, request.engine
    if len(model.exit_layers) == 1 and not engine.criterion.full_depth:
        print_line(f"{args.model} has no exits, so every row runs at full depth; jobs/distill.py adds them")
    if args.plan:
        return plan(args, request)
    try:
        outcome = run_bulk(request)
    except UnfinishedRunError as error:
        raise command.FailedError(f"{command.cause_of(error.cause)}\n{error}") from error
    if outcome is None:
        print_line(f"nothing to do: {absolute(args.output)} already holds the results of every file")
        return command.DONE
    write_report(outcome, with_examples=args.examples)
    print_summary(outcome)
    if outcome.manifest is None:
        raise command.FailedError(withheld(outcome.audit_result))
    rejected = outcome.totals.rows_rejected + outcome.totals.read_errors
    return command.FAILED if args.strict and rejected else command.DONE


def plan(args: argparse.Namespace, request: BulkRequest) -> int:
    """Print what the request would take; return the exit code, or raise FailedError if a worker fails at the sample."""
    began = time.monotonic() - (time.time() - psutil.Process().create_time())
    try:
        forecast = forecast_of(request, began)
    except FAILURES as error:
        raise command.FailedError(command.cause_of(error)) from error
    if forecast is None:
        print_line(f"nothing to classify: {absolute(args.output)} already holds the results of every file")
        return command.DONE
    print_forecast(forecast, request.guarantee.price_per_hour)
    return command.DONE


def print_forecast(forecast: Forecast, price_per_hour: float | None) -> None:
    """Print the corpus, what becomes of its rows, and what that takes."""
    whole, rows = forecast.whole, max(forecast.rows, 1.0)
    rows_out, tokens = max(whole["rows_out"][""], 1.0), whole["tokens"][""]
    by_reason = "".join(f", {count / rows:.2%} {reason}" for reason, count in whole["rejected"].items())
    exits = " ".join(f"{layer}:{count / rows_out:.1%}" for layer, count in whole["exits"].items() if count)
    mean = sum(int(layer) * count for layer, count in whole["exits"].items()) / rows_out
    speedup = whole["flops_full_depth"][""] / max(whole["flops"][""], 1.0)
    print()
    print_line(f"what the run would be, by {forecast.sampled.rows_in:,} rows; no results were written")
    print_line(f"  files        {forecast.files:,}, {forecast.bytes / 1e6:,.1f} MB")
    print_line(f"  rows         about {rows:,.0f}")
    print_line(f"  tokens       about {tokens:,.0f}, {tokens / rows_out:.1f} a row")
    if whole["windows"][""] > rows_out:
        print_line(f"  windows      about {whole['windows']['']:,.0f}, {whole['windows'][''] / rows_out:.2f} a row")
    print_line(f"  truncated    {whole['truncated'][''] / rows_out:.2%}")
    print_line(f"  rejects      {sum(whole['rejected'].values()) / rows:.2%}{by_reason}")
    print_line(f"  exits        {exits}")
    print_line(f"  mean exit    {mean:.2f} of {len(forecast.sampled.exits)} layers, {speedup:.2f}x fewer FLOPs")
    print_line(f"  actors       {forecast.plan.describe()}")
    print_line(
        f"  time         about {duration(forecast.seconds)}, {duration(forecast.start_seconds)} of it to start; "
        f"{rows / forecast.seconds:,.0f} rows/s, waiting for {forecast.held_up_by}"
    )
    if price_per_hour is not None:
        hours = forecast.seconds / 3600 * forecast.plan.actors
        print_line(f"  cost         about {hours * price_per_hour:.4g}, {hours:.4g} actor-hours")


def write_report(outcome: Outcome, *, with_examples: bool) -> None:
    """Write the report page beside the manifest."""
    files, folder = outcome.corpus.files, outcome.output.folder
    page = run_page(
        RunSummary(
            folder=folder,
            fingerprint=outcome.fingerprint,
            files=len(files),
            input_bytes=outcome.corpus.size,
            seconds=outcome.seconds,
            totals=outcome.totals,
            fresh=outcome.fresh,
            timeline=outcome.timeline,
            audit=outcome.audit_result,
            predictions=outcome.predictions,
            withheld="" if outcome.manifest else withheld(outcome.audit_result),
            examples=examples(files, outcome.columns, outcome.output) if with_examples else None,
        )
    )
    storage_of(folder).write(f"{folder}/{REPORT}", page.encode())


def withheld(result: AuditResult) -> str:
    """Say why nothing was published."""
    tonight = f"{result.differing:,} of {result.rows:,} audited rows differ from full depth"
    why = over_all_nights(result) if result.verdict == "broken" else tonight
    if result.broken_classes:
        why = "; ".join([*([why] if result.verdict == "broken" else []), over_classes(result.classes)])
    moved = [f"{name} ({result.drift[name].moved})" for name in result.alarms]
    drift = f", and drift in {', '.join(moved)}" if moved else ""
    return f"not published: {why}{drift}. Calibrate on such rows, or run the same command without --audit-fail"


def print_summary(outcome: Outcome) -> None:
    """Print what the run did, where rows exited, and where the results are."""
    totals, fresh, folder = outcome.totals, outcome.fresh, outcome.output.folder
    busy = ", ".join(f"{stage} {seconds:,.1f} s" for stage, seconds in fresh.cpu_seconds.items())
    memory = ", ".join(f"{stage} {peak:,.0f}" for stage, peak in fresh.peak_mb.items())
    by_reason = "".join(f", {rows:,} {reason}" for reason, rows in totals.rejected.items())
    exits = " ".join(f"{layer}:{rows:,}" for layer, rows in enumerate(totals.exits, start=1) if rows)
    mean = f"{totals.mean_exit_layer:.2f} of {len(totals.exits)} layers"
    print()
    print_line(f"{fresh.rows_in:,} rows in {duration(outcome.seconds)}: {fresh.rows_in / outcome.seconds:,.0f} rows/s")
    print_line(f"  out          {totals.rows_out:,} rows of {totals.shards:,} shards")
    print_line(f"  rejects      {totals.rows_rejected:,} rows{by_reason}")
    for file, problem in list(totals.unreadable.items())[:UNREADABLE_SHOWN]:
        print_line(f"  unreadable   {file}: {problem}")
    if len(totals.unreadable) > UNREADABLE_SHOWN:
        print_line(f"  unreadable   and more: {totals.read_errors:,} stretches of files in all")
    if totals.windows > totals.rows_out:
        print_line(f"  windows      {totals.windows:,}, {totals.windows / totals.rows_out:.2f} a row")
    print_line(f"  truncated    {totals.truncated:,} rows")
    print_line(f"  exits        {exits}")
    print_line(f"  mean exit    {mean}, {totals.flops_speedup:.2f}x fewer FLOPs")
    for line in summary(outcome.audit_result):
        print_line(f"  {line}")
    print_line(f"  CPU time     {busy}")
    print_line(f"  peak MB      {memory}, driver {outcome.driver_peak_mb:,.0f}")
    if totals.rejected or totals.unreadable:
        print_line(f"rejects are in {folder}/{REJECTS_FOLDER}, with reasons")
    if outcome.manifest is not None:
        print_line(f"results are in {folder}, listed in {MANIFEST}, with figures in {REPORT}")
