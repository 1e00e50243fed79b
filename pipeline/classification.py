"""The main run, from a checked request to published results: resume, stream, write receipts down, publish."""

import copy
import hashlib
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from models.early_exit import EarlyExitModel
from pipeline.audit import Findings, Promise, findings
from pipeline.cluster import check_free, join_or_start, plan_actors
from pipeline.config import EngineConfig
from pipeline.errors import UserError
from pipeline.formats import FileFormatError, file_columns, is_text
from pipeline.inputs import Corpus, InputFile
from pipeline.isolation import clear_attempts
from pipeline.ledger import Ledger
from pipeline.manifest import Fingerprint, code_version
from pipeline.metrics import BulkMetrics
from pipeline.progress import Progress
from pipeline.receipts import Totals, peak_memory_mb
from pipeline.run_report import Timeline
from pipeline.schema import output_schema
from pipeline.source import Columns
from pipeline.stages import ClassifySpec, classify_files, receipts_of
from pipeline.tokenise import TokeniserSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run did."""

    totals: Totals
    """Of the whole output folder."""
    fresh: Totals
    """Of this run only."""
    timeline: Timeline
    """Of this run."""
    seconds: float
    manifest: str | None
    """None if the results were withheld: see `Promise.withhold`."""
    found: Findings
    """Of what was not published before."""
    driver_peak_mb: float


def resolve_columns(
    corpus: Corpus, *, text: str, pair: str | None, id_column: str | None, keep: list[str], results: Sequence[str]
) -> Columns:
    """Check the wanted columns against the first readable file; raise UserError naming file, column and type.

    Later files that differ are no error of the command: they land in the rejects, by name.
    """
    clash = [name for name in keep if name in results]
    if clash:
        raise UserError(f"--keep {clash[0]}: the output has a column of that name itself")
    file, there = _first_readable(corpus.files)
    for option, name in (("--text-column", text), ("--pair-column", pair), ("--id-column", id_column)):
        if name is None:
            continue
        if name not in there:
            raise UserError(f"{option} {name}: {file.path} has no such column; it has {', '.join(there) or 'none'}")
        kind = there[name]
        if option != "--id-column" and kind is not None and not is_text(kind):
            raise UserError(f"{option} {name}: in {file.path} it is of type {kind}, not text")
    missing = [name for name in keep if name not in there]
    if missing:
        raise UserError(f"--keep {missing[0]}: {file.path} has no such column; it has {', '.join(there)}")
    return Columns(
        text=text, pair=pair, id=id_column, keep=pa.schema([(name, _kept_type(there[name])) for name in keep])
    )


def _kept_type(kind: pa.DataType | None) -> pa.DataType:
    """Return a type that all files can give a column: text where the first knows none, and no dictionary: those may grow."""
    if kind is None or pa.types.is_null(kind):
        return pa.string()
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _first_readable(files: list[InputFile]) -> tuple[InputFile, dict[str, pa.DataType | None]]:
    for file in files:
        try:
            columns = file_columns(file)
        except FileFormatError as error:
            problem = f"{file.path}: {error}"
            continue
        if columns or file is files[-1]:
            return file, columns
    raise UserError(f"no input file can be read; the last one: {problem}")


def columns_of(
    corpus: Corpus,
    recorded: pa.Schema | None,
    *,
    text: str,
    pair: str | None,
    id_column: str | None,
    keep: list[str],
    results: Sequence[str],
) -> Columns:
    """Take the columns as the parts that are there have them, and open nothing; or resolve them, where there are none yet."""
    keep = list(dict.fromkeys(keep))
    if recorded is None:
        return resolve_columns(corpus, text=text, pair=pair, id_column=id_column, keep=keep, results=results)
    return Columns(text=text, pair=pair, id=id_column, keep=pa.schema([recorded.field(name) for name in keep]))


def fingerprint_of(
    model: EarlyExitModel,
    weights: str,
    engine: EngineConfig,
    tokeniser: TokeniserSpec,
    *,
    columns: Mapping[str, str | None],
    schema: Sequence[str],
) -> Fingerprint:
    """Name and hash everything that decides the answers, but not where it is: a copy of a model is the same model.

    `weights` is `models.digest` of the model; `columns` says what those of the input mean, `schema` names those of the output.
    """
    kind = repr((model.config.model_type, model.shape, model.labels, model.last_head, model.branch_head))
    return {
        "model": hashlib.blake2b(f"{weights} {kind}".encode(), digest_size=8).hexdigest(),
        "tokenizer": hashlib.blake2b(repr(tokeniser).encode(), digest_size=8).hexdigest(),
        "max-tokens": str(tokeniser.max_tokens),
        "criterion": engine.criterion.describe(),
        "exits": " ".join(map(str, engine.exits or model.exit_layers)),
        "dtype": engine.dtype,
        "columns": " ".join(f"{meaning}={name}" for meaning, name in columns.items()),
        "schema": ", ".join(schema),
        "offramp": code_version(),
    }


def classify_corpus(
    corpus: Corpus,
    left: Mapping[str, Collection[int]],
    spec: ClassifySpec,
    ledger: Ledger,
    promise: Promise,
    *,
    actors: tuple[int, int] | None,
) -> Outcome:
    """Classify what is left (path -> starts of shards that are done), check it and publish the manifest."""
    started = time.monotonic()
    fresh, timeline = Totals(), Timeline()
    ledger.begin(output_schema(spec.results, spec.columns.keep))
    if left:
        join_or_start()
        plan = plan_actors(*(actors or ()))
        check_free(plan)
        files = [file for file in corpus.files if file.path in left]
        already = copy.deepcopy(ledger.totals())
        progress = Progress(int(already.input_bytes) + sum(file.size for file in files), already)
        metrics = BulkMetrics()
        try:
            for receipt in receipts_of(classify_files(files, left, spec, plan)):
                ledger.add(receipt)
                fresh.add(receipt)
                progress.add(receipt)
                timeline.add(receipt)
                metrics.shard(receipt)
        finally:
            progress.close()
        ledger.flush()
        unfinished = ledger.unfinished(corpus.files)
        if unfinished:
            raise AssertionError(f"the chain ended without {len(unfinished)} files, such as {next(iter(unfinished))}")
        clear_attempts(spec.output.folder)
    seconds = time.monotonic() - started
    found = findings(ledger.unpublished(), promise)
    withheld = promise.withhold and found.failed
    return Outcome(
        totals=ledger.totals(),
        fresh=fresh,
        timeline=timeline,
        seconds=seconds,
        manifest=None if withheld else ledger.publish(seconds, found.to_json()),
        found=found,
        driver_peak_mb=peak_memory_mb(),
    )
