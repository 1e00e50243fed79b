"""A bulk run, from a request to published results.

    list inputs ──> fingerprint ──> ledger: what is left? ──> classify it ──> audit it ──> publish the manifest
                                           │                      │
                                           nothing                fails, or is stopped: what is done is kept

The same request goes on where a run ended, and does nothing once all results are published.
"""

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError

from models.checkpoint import check_finite, check_weights
from models.directory.config import plain_config
from models.early_exit import EarlyExitModel
from models.precision import DTYPES, check_precision, precision_on
from pipeline.bulk.attempts import clear_attempts
from pipeline.bulk.fingerprint import fingerprint_of, kept_of_folders
from pipeline.bulk.progress import Timeline
from pipeline.bulk.run_log import RunLog
from pipeline.bulk.spec import ClassifySpec
from pipeline.bulk.stages import abandon, classify_files, receipts_of
from pipeline.calibration.audit import AuditSpec
from pipeline.calibration.verdict import AuditResult, Guarantee, judge
from pipeline.clock import peak_memory_mb
from pipeline.cluster.address import find_cluster
from pipeline.cluster.connect import join_or_start, shut_down
from pipeline.cluster.resources import ActorPlan, ask_node, check_free, plan_actors, wait_for_nodes
from pipeline.corpus.columns import Columns, resolve_columns
from pipeline.corpus.listing import Corpus, InputFile, list_inputs
from pipeline.corpus.tokenize import TokenizerSpec
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import check_exits
from pipeline.errors import StorageError
from pipeline.identity import ModelIdentity, dtype_of, is_precision
from pipeline.output.generations import Generations
from pipeline.output.ledger import Ledger
from pipeline.output.manifest import Fingerprint
from pipeline.output.parts import Output, prepare_folder
from pipeline.output.results import results_as_corpus
from pipeline.output.totals import Totals
from pipeline.predicted import Comparison, PredictionBins
from pipeline.schema import output_schema
from pipeline.storage.tree import OwnResultsError
from pipeline.tables.delta import table_of

FAILURES = (RayError, ExecutionTimeoutError, StorageError)
"""Errors of workers and of the storage, by which a run may end in the middle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkModel:
    """A model for a bulk run: where it lies, and what it is without its weights."""

    address: str
    """Directory, hub id or s3:// address, by which every machine finds the same model."""
    directory: str
    """Where this machine finds it: the copy on its disk of an s3:// address, else `address`."""
    meta: EarlyExitModel
    """The model on torch's meta device, by `EarlyExitModel.from_config`: shape, exits, labels and criterion."""
    weights: str
    """Digest of its weights, by `models.directory.digest`."""
    tokenizer: TokenizerSpec

    @property
    def identity(self) -> ModelIdentity:
        """What decides its predictions, but for the precision."""
        return ModelIdentity.of(self.meta, self.weights, self.tokenizer)


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkRequest:
    """A model, a corpus to send through it, and a folder for the results."""

    model: BulkModel
    engine: EngineConfig
    input: str
    """File, folder or glob, local or s3://."""
    output: str
    """Folder, local or s3://; made if absent."""
    precision: str | None = None
    """What to compute in, where a calibration has decided that; None is what `engine.dtype` stands for where it is computed."""
    results: tuple[str, ...]
    """Columns to write beside the kept ones, of `schema.RESULTS`."""
    text_column: str = "text"
    pair_column: str | None = None
    id_column: str | None = None
    keep: tuple[str, ...] = ()
    """Columns of the input to carry into the output."""
    audit: AuditSpec | None = None
    guarantee: Guarantee = field(default_factory=Guarantee)
    bundle_rows: int | None = None
    """Rows of a call of the engine, and of a part, about; None is a number for the device."""
    actors: tuple[int, int] | None = None
    """Fewest and most actors; None is as many as fit."""
    wait_for: Mapping[str, float] = field(default_factory=dict)
    """Resources that the cluster must have before the run is planned, such as {"GPU": 8}."""
    incremental: bool = False
    """Keep results of files that are gone from the input, and take an empty input for no error."""
    overwrite: bool = False
    """Start over; the results in the folder stay valid until new ones replace them."""
    table: str | None = None
    """Kind of table to make of the folder, of `tables.delta.KINDS`; None keeps up the one that is there, if there is one."""
    log: Callable[[str], None] = print
    """Takes each line on how the run goes."""

    def fingerprint(self, precision: str) -> Fingerprint:
        """Name everything that decides the predictions."""
        model, columns = self.model, {"text": self.text_column, "pair": self.pair_column, "id_column": self.id_column}
        return fingerprint_of(
            model.meta,
            model.identity,
            self.engine,
            precision=precision,
            columns=columns,
            schema=[*self.results, *self.keep],
            tokenizer=model.tokenizer,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run did."""

    corpus: Corpus
    columns: Columns
    output: Output
    fingerprint: Fingerprint
    totals: Totals
    """Totals of the whole output folder."""
    fresh: Totals
    """Totals of this run alone."""
    timeline: Timeline
    seconds: float
    """Wall-clock time of this run."""
    manifest: str | None
    """Location of the manifest; None if the results were withheld: see `Guarantee.withhold`."""
    audit_result: AuditResult
    """Audit of the rows that were not published before."""
    driver_peak_mb: float
    predictions: Comparison


class UnfinishedRunError(Exception):
    """Raise when a worker or the storage fails in the middle of a run; the message says what is kept."""

    def __init__(self, cause: Exception, kept: str) -> None:
        super().__init__(kept)
        self.cause = cause


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRun:
    """A request that can be met, and what there is to do for it."""

    corpus: Corpus
    ledger: Ledger
    left: Mapping[str, Collection[int]]
    """Files with work left, by path, with the starts of their shards that are done."""
    spec: ClassifySpec

    @property
    def files(self) -> list[InputFile]:
        """The files with work left."""
        return [file for file in self.corpus.files if file.path in self.left]


def run_bulk(request: BulkRequest) -> Outcome | None:
    """Send the corpus through the model and publish the results; return None if the folder already holds all of them.

    Raises UserError for a request that cannot be met, and UnfinishedRunError if the run fails in the middle.
    """
    with prepared(request) as run:
        if run is None:
            return None
        with _kept_if_unfinished(request, run.spec, run.ledger):
            return _classify(request, run)


@contextlib.contextmanager
def prepared(request: BulkRequest, *, to_run: bool = True) -> Iterator[PreparedRun | None]:
    """Check a request and open its folder; None if that already holds all results. Raises UserError if it cannot be met.

    If it is not `to_run`, nothing is made good or cleaned up that earlier runs have left.
    """
    corpus = _list_corpus(request)
    for remark in corpus.remarks:
        request.log(remark)
    check_exits(request.model.meta, request.engine)
    if find_cluster() is None:  # the machines of a cluster are others than this one, and check for themselves
        check_precision(dtype_of(request.precision or request.engine.dtype), request.model.meta.shape)
    folder = prepare_folder(request.output, request.input)
    request.log(f"{len(corpus.files):,} files, {corpus.size / 1e6:,.1f} MB -> {folder}")
    table = table_of(folder, request.table, request.log)
    precision = settled_precision(request, folder)
    names = Columns(text=request.text_column, pair=request.pair_column, id=request.id_column)
    given = kept_of_folders(corpus.files, names, request.keep, folder, overwrite=request.overwrite)

    def follow() -> None:
        if found := table or table_of(folder, None, request.log):  # another driver may have made one meanwhile
            found.follow()

    with Ledger(folder, request.fingerprint(precision) | given, overwrite=request.overwrite, follow=follow) as ledger:
        if table and to_run:
            table.catch_up(overwrite=request.overwrite)
        left = ledger.unfinished(corpus.files, keep_gone=request.incremental)
        ledger.check_rewritten(corpus, left)
        for line in ledger.remarks:
            request.log(line)
        if left_out := ledger.left_out(corpus.files):
            request.log(f"{left_out}: the new results will be without them")
        if not left and (ledger.published() or ledger.schema is None):
            if to_run:
                ledger.finish()
            yield None
            return
        spec = _spec_of(request, corpus, names, ledger, precision)
        if table:
            table.check(output_schema(spec.results, spec.columns.keep))
        check_weights(request.model.directory, request.model.meta)  # here a fault is reported once, not by every actor
        check_finite(request.model.directory, request.model.meta)
        yield PreparedRun(corpus=corpus, ledger=ledger, left=left, spec=spec)


def _list_corpus(request: BulkRequest) -> Corpus:
    """List the input; of a folder that another run wrote, the parts that its manifest names."""
    try:
        return list_inputs(request.input, may_be_empty=request.incremental)
    except OwnResultsError:
        return results_as_corpus(request.input)


def settled_precision(request: BulkRequest, folder: str) -> str:
    """Name the precision that a run computes in, whatever machines it comes to: never 'auto', but what that stands for.

    A folder is gone on with in the precision of its results, and new ones are begun in the best of the machines that compute.
    """
    asked = request.engine.dtype
    if request.precision is not None or asked in DTYPES:
        return request.precision or asked
    here = precision_on(asked, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    recorded = Generations.read(folder).goes_on_from(overwrite=request.overwrite).get("dtype", "")
    if is_precision(recorded) and asked in ("auto", dtype_of(recorded)):
        if recorded != here:
            request.log(f"computing in {recorded}, as the results in {folder} were; here {asked} would be {here}")
        return recorded
    if find_cluster() is None:
        return here
    plan = planned(request)
    return ask_node(plan, precision_on, asked, torch.device(plan.device))


def _spec_of(request: BulkRequest, corpus: Corpus, names: Columns, ledger: Ledger, precision: str) -> ClassifySpec:
    """Collect what the stages need; raise UserError for columns that are missing or of another type."""
    columns = resolve_columns(corpus.files, names, keep=request.keep, results=request.results, recorded=ledger.schema)
    return ClassifySpec(
        columns=columns,
        tokenizer=request.model.tokenizer,
        model=request.model.address,
        identity=request.model.identity,
        precision=precision,
        config=plain_config(request.model.meta.config),
        engine=replace(request.engine, dtype=dtype_of(precision)),
        output=ledger.output,
        results=request.results,
        audit=request.audit,
        bundle_rows=request.bundle_rows,
    )


@contextlib.contextmanager
def _kept_if_unfinished(request: BulkRequest, spec: ClassifySpec, ledger: Ledger) -> Iterator[None]:
    """Store what is done when the run fails or is stopped, say how much that is, and leave Ray with its work."""
    try:
        yield
    except FAILURES as error:
        kept = _kept(ledger)
        shut_down()  # the actors would hold the cluster as long as this process lives
        raise UnfinishedRunError(error, kept) from error
    except (SystemExit, KeyboardInterrupt):
        request.log(f"stopped: {_kept(ledger)}")
        abandon(spec)
        raise


def _kept(ledger: Ledger) -> str:
    """Store the receipts, as far as the storage lets us, and say what is kept of an unfinished run."""
    with contextlib.suppress(StorageError):
        ledger.flush()
    done = ledger.totals()
    return f"{done.rows_in:,} rows in {done.shards:,} shards are kept; the same command goes on from there"


def _classify(request: BulkRequest, run: PreparedRun) -> Outcome:
    """Classify what is left, judge it and publish the manifest."""
    started = time.monotonic()
    corpus, ledger, spec, files = run.corpus, run.ledger, run.spec, run.files
    secret = ledger.begin(output_schema(spec.results, spec.columns.keep))
    run = replace(run, spec=spec.with_secret(secret))
    log = RunLog(ledger, bytes_left=sum(file.size for file in files))
    if files:
        _stream(request, run, log)
        ledger.flush()
        if unfinished := ledger.unfinished(corpus.files):
            raise AssertionError(f"the chain ended without {len(unfinished)} files, such as {next(iter(unfinished))}")
        clear_attempts(spec.output.folder)
    seconds = time.monotonic() - started
    bins = PredictionBins.of(spec.results, request.model.meta.labels)
    predictions = ledger.compare(bins)
    audit_result = judge(ledger.unpublished(), request.guarantee, ledger.nights(), predictions, ledger.totals())
    withheld = request.guarantee.withhold and audit_result.failed
    manifest = None if withheld else ledger.publish(seconds, audit_result.to_json(), bins)
    return Outcome(
        corpus=corpus,
        columns=spec.columns,
        output=ledger.output,
        fingerprint=ledger.fingerprint,
        totals=ledger.totals(),
        fresh=log.totals,
        timeline=log.timeline,
        seconds=seconds,
        manifest=manifest,
        audit_result=audit_result,
        driver_peak_mb=peak_memory_mb(),
        predictions=predictions,
    )


def planned(request: BulkRequest) -> ActorPlan:
    """Join or start Ray, wait for the nodes asked for, and plan the actors; raise DoesNotFitError if they do not fit."""
    join_or_start(request.log)
    wait_for_nodes(request.wait_for, request.log)
    plan = plan_actors(*(request.actors or ()))
    check_free(plan)
    return plan


def _stream(request: BulkRequest, run: PreparedRun, log: RunLog) -> None:
    """Run the chain over files and note the receipts; raise DoesNotFitError if the cluster is too small for it."""
    plan = planned(request)
    request.log(f"loading the model on {plan.describe()}")
    with log:
        for receipts in receipts_of(classify_files(run.files, run.left, run.spec, plan)):
            log.observe(receipts)
