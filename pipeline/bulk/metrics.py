"""Metrics of a bulk run, reported by its driver."""

from pipeline.cluster.monitoring import AUDITED, BULK, DIFFERING, REJECTS, STAGE_SECONDS, RegisteredMetrics
from pipeline.output.receipts import Receipt


class BulkMetrics(RegisteredMetrics):
    """Of a bulk run, on its driver."""

    def __init__(self) -> None:
        super().__init__("bulk", BULK)

    def shard(self, receipt: Receipt) -> None:
        """Count a finished shard."""
        self.work(
            rows=receipt.rows_out,
            tokens=receipt.tokens,
            exits=receipt.exits,
            layer_tokens=receipt.layer_tokens,
            padding_tokens=receipt.padding_tokens,
        )
        self.count(AUDITED, receipt.audited)
        self.count(DIFFERING, receipt.differing)
        for reason, rows in receipt.rejected.items():
            self.count(REJECTS, rows, reason=reason)
        for stage, seconds in receipt.seconds.items():
            self.count(STAGE_SECONDS, seconds, stage=stage)
