"""What the driver makes of receipts as they come in: the ledger, totals, a timeline, progress and metrics."""

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
            for receipt in receipts:
                log.observe(receipt)

    `totals` and `timeline` are those of this run alone.
    """

    def __init__(self, ledger: Ledger, bytes_left: int) -> None:
        self.totals, self.timeline = Totals(), Timeline()
        self._ledger, self._bytes_left = ledger, bytes_left

    def __enter__(self) -> Self:
        self._progress, self._metrics = Progress(self._ledger.totals(), self._bytes_left), BulkMetrics()
        return self

    def observe(self, receipt: Receipt) -> None:
        """Take note of a finished shard; raise StorageError if earlier ones could not be stored."""
        self._ledger.add(receipt)
        self.totals = self.totals.plus(receipt)
        self.timeline.add(receipt)
        self._metrics.count_shard(receipt)
        self._progress.update(self.totals)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.close(self.totals)
