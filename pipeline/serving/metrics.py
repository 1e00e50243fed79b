"""Metrics of a replica that answers requests."""

from pipeline.cluster.monitoring import QUEUE_ROWS, REQUEST_SECONDS, REQUESTS, SERVING, STAGE_SECONDS, RegisteredMetrics
from pipeline.serving.queue import BatchReport


class ServingMetrics(RegisteredMetrics):
    """Of a replica that answers requests."""

    def __init__(self) -> None:
        super().__init__("serve", SERVING)

    def batch(self, report: BatchReport) -> None:
        """Count a call of the engine."""
        self.work(
            rows=report.rows,
            tokens=report.tokens,
            exits=report.exits,
            layer_tokens=report.layer_tokens,
            padding_tokens=report.padding_tokens,
        )
        self.count(STAGE_SECONDS, report.seconds, stage="classify")
        self._made[QUEUE_ROWS.name].set(report.waiting_rows)

    def request(self, status: int, seconds: float) -> None:
        """Count an HTTP request and its time."""
        self.count(REQUESTS, 1, status=str(status))
        self._made[REQUEST_SECONDS.name].observe(seconds)
