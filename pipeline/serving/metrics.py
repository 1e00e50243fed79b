"""Metrics of a server, exported by each of its replicas."""

from pipeline.cluster.monitoring import (
    COUNTER,
    ENGINE,
    GAUGE,
    HISTOGRAM,
    STAGE_SECONDS,
    Metric,
    RegisteredMetrics,
)
from pipeline.serving.queue import BatchReport

QUEUE_ROWS = Metric("offramp_queue_rows", GAUGE, ("source",), "Rows that wait for the engine of a replica.")
REQUESTS = Metric("offramp_requests", COUNTER, ("source", "status"), "HTTP requests by status code.")
REQUEST_SECONDS = Metric(
    "offramp_request_seconds", HISTOGRAM, ("source",), "Seconds from an HTTP request to its response."
)
SERVING = (*ENGINE, QUEUE_ROWS, REQUESTS, REQUEST_SECONDS)
"""Metrics that a server exports."""


class ServingMetrics(RegisteredMetrics):
    """The metrics of a replica."""

    def __init__(self) -> None:
        super().__init__("serve", SERVING)

    def count_batch(self, report: BatchReport) -> None:
        """Count a call of the engine."""
        self.count_work(
            rows=report.rows,
            tokens=report.tokens,
            exits=report.exits,
            layer_tokens=report.layer_tokens,
            padding_tokens=report.padding_tokens,
        )
        self.count(STAGE_SECONDS, report.seconds, stage="classify")
        self.set(QUEUE_ROWS, report.waiting_rows)

    def count_request(self, status: int, seconds: float) -> None:
        """Count an HTTP request, and the seconds until its response."""
        self.count(REQUESTS, 1, status=str(status))
        self.observe(REQUEST_SECONDS, seconds)
