"""What the driver makes of receipts as they come in: the ledger, totals, a timeline, progress and the metrics it exports."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from pipeline.bulk.progress import Progress, Timeline
from pipeline.cluster.monitoring import COUNTER, ENGINE, STAGE_SECONDS, Metric, RegisteredMetrics
from pipeline.output.counts import Counts
from pipeline.output.ledger import Ledger
from pipeline.output.receipts import Receipt
from pipeline.output.totals import Totals

REJECTS = Metric("offramp_rejects", COUNTER, ("source", "reason"), "Rows rejected, by reason.")
AUDITED = Metric("offramp_audited_rows", COUNTER, ("source",), "Rows that the audit ran at full depth as well.")
DIFFERING = Metric(
    "offramp_differing_rows", COUNTER, ("source",), "Audited rows whose prediction at full depth is another."
)
BULK = (*ENGINE, REJECTS, AUDITED, DIFFERING)
"""Metrics that a bulk run exports."""
ACTOR_QUEUE = "num_external_inqueue_blocks"
"""Ray Data's own metric, exported as `ray_data_...` with the label `operator`: blocks (bundles) that wait for an operator."""


class BulkMetrics(RegisteredMetrics):
    """The metrics of a bulk run, on its driver."""

    def __init__(self) -> None:
        super().__init__("bulk", BULK)

    def count_bundle(self, bundle: Counts) -> None:
        """Count a finished bundle."""
        self.count_work(
            rows=bundle.rows_out,
            tokens=bundle.tokens,
            exits=bundle.exits,
            layer_tokens=bundle.layer_tokens,
            padding_tokens=bundle.padding_tokens,
        )
        self.count(AUDITED, bundle.audited)
        self.count(DIFFERING, bundle.differing)
        for reason, rows in bundle.rejected.items():
            self.count(REJECTS, rows, reason=reason)
        for stage, seconds in bundle.seconds.items():
            self.count(STAGE_SECONDS, seconds, stage=stage)


class RunLog:
    """The receipts of one run; while they come in, it shows progress and reports metrics.

        with RunLog(ledger, bytes_left=1 << 30) as log:
            for receipts in receipts_of(chain):
                log.observe(receipts)

    `totals` and `timeline` are those of this run alone.
    """

    def __init__(self, ledger: Ledger, bytes_left: int) -> None:
        self.totals, self.timeline = Totals(), Timeline()
        self._ledger, self._bytes_left, self._started = ledger, bytes_left, time.monotonic()

    def __enter__(self) -> Self:
        self._progress, self._metrics = Progress(self._ledger.totals(), self._bytes_left), BulkMetrics()
        return self

    def observe(self, receipts: Sequence[Receipt]) -> None:
        """Take note of a finished bundle; raise StorageError if earlier ones could not be stored."""
        self._ledger.add(receipts)
        bundle = Totals()
        for receipt in receipts:
            bundle = bundle.plus(receipt)
        self.totals = self.totals.merged(bundle)
        self.timeline.add(bundle, time.monotonic() - self._started)
        self._metrics.count_bundle(bundle)
        self._progress.update(self.totals, bundle, receipts)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.close(self.totals)
