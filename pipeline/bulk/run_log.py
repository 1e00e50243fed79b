"""What the driver makes of receipts as they come in: the ledger, totals, a timeline, progress and metrics."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from pipeline.bulk.metrics import BulkMetrics
from pipeline.bulk.progress import Progress, Timeline
from pipeline.output.ledger import Ledger
from pipeline.output.receipts import Receipt
from pipeline.output.totals import Totals


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
        self._progress.update(self.totals, bundle)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.close(self.totals)
