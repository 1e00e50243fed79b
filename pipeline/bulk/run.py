"""The main run, from a checked request to published results: resume, stream, write receipts down, publish."""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pipeline.bulk.metrics import BulkMetrics
from pipeline.bulk.progress import Progress
from pipeline.bulk.quarantine import clear_attempts
from pipeline.bulk.spec import ClassifySpec
from pipeline.bulk.stages import classify_files, receipts_of
from pipeline.bulk.timeline import Timeline
from pipeline.calibration.verdict import AuditResult, Guarantee, judge
from pipeline.clock import peak_memory_mb
from pipeline.cluster.connect import join_or_start
from pipeline.cluster.resources import check_free, plan_actors
from pipeline.corpus.listing import Corpus
from pipeline.output.ledger import Ledger
from pipeline.output.totals import Totals
from pipeline.schema import output_schema


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
    found: AuditResult
    """Of what was not published before."""
    driver_peak_mb: float


def classify_corpus(
    corpus: Corpus,
    left: Mapping[str, Collection[int]],
    spec: ClassifySpec,
    ledger: Ledger,
    guarantee: Guarantee,
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
        already = ledger.totals()
        progress = Progress(int(already.input_bytes) + sum(file.size for file in files), already)
        metrics = BulkMetrics()
        try:
            for receipt in receipts_of(classify_files(files, left, spec, plan)):
                ledger.add(receipt)
                fresh = fresh.plus(receipt)
                progress.add(receipt)
                timeline.add(receipt)
                metrics.count_shard(receipt)
        finally:
            progress.close()
        ledger.flush()
        unfinished = ledger.unfinished(corpus.files)
        if unfinished:
            raise AssertionError(f"the chain ended without {len(unfinished)} files, such as {next(iter(unfinished))}")
        clear_attempts(spec.output.folder)
    seconds = time.monotonic() - started
    found = judge(ledger.unpublished(), guarantee)
    withheld = guarantee.withhold and found.failed
    return Outcome(
        totals=ledger.totals(),
        fresh=fresh,
        timeline=timeline,
        seconds=seconds,
        manifest=None if withheld else ledger.publish(seconds, found.to_json()),
        found=found,
        driver_peak_mb=peak_memory_mb(),
    )
