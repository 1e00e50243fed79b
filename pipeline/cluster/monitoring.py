"""Metrics for watching a run or a server, through Ray's own exporter: `/metrics` of every node, in Prometheus' text format.

Ray puts `ray_` before a name and `_total` after a counter's, shows a value some ten seconds late, and keeps series of processes
that ended. Exact totals are in the manifest; these are for watching. A bulk run reports from its driver, as receipts come in; a
server from its replicas.
"""

from dataclasses import dataclass
from typing import Any

from ray.util import metrics as ray_metrics

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]
"""Bounds of latency buckets: Prometheus' own defaults, and what a queue adds."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric that offramp reports."""

    name: str
    kind: str
    tags: tuple[str, ...]
    description: str

    @property
    def exported(self) -> str:
        """Its name on the page; a histogram's series end in `_bucket`, `_sum` and `_count` besides."""
        return f"ray_{self.name}" + ("_total" if self.kind == COUNTER else "")


ROWS = Metric("offramp_rows", COUNTER, ("source",), "Rows answered.")
TOKENS = Metric("offramp_tokens", COUNTER, ("source",), "Tokens of these rows.")
REJECTS = Metric("offramp_rejects", COUNTER, ("source", "reason"), "Rows that could not be used.")
EXITS = Metric("offramp_exits", COUNTER, ("source", "layer"), "Rows that left after this layer.")
ACTIVE = Metric("offramp_active_rows", COUNTER, ("source", "layer"), "Rows that went through this layer.")
LAYER_TOKENS = Metric("offramp_layer_tokens", COUNTER, ("source",), "Tokens x layers computed for rows.")
PADDING_TOKENS = Metric("offramp_padding_tokens", COUNTER, ("source",), "Tokens x layers computed to fill matrices up.")
STAGE_SECONDS = Metric(
    "offramp_stage_seconds", COUNTER, ("source", "stage"), "Time spent in a stage, over all workers."
)
AUDITED = Metric("offramp_audited_rows", COUNTER, ("source",), "Rows that went to full depth as well.")
DIFFERING = Metric("offramp_differing_rows", COUNTER, ("source",), "Audited rows that full depth answers otherwise.")
QUEUE_ROWS = Metric("offramp_queue_rows", GAUGE, ("source",), "Rows that wait for the engine of a replica.")
BATCHES = Metric("offramp_batches", COUNTER, ("source",), "Calls of the engine, or shards.")
REQUESTS = Metric("offramp_requests", COUNTER, ("source", "status"), "HTTP requests by status code.")
REQUEST_SECONDS = Metric("offramp_request_seconds", HISTOGRAM, ("source",), "Time from an HTTP request to its answer.")

BULK = (ROWS, TOKENS, REJECTS, EXITS, ACTIVE, LAYER_TOKENS, PADDING_TOKENS, STAGE_SECONDS, BATCHES, AUDITED, DIFFERING)
SERVING = (
    ROWS, TOKENS, EXITS, ACTIVE, LAYER_TOKENS, PADDING_TOKENS, STAGE_SECONDS, BATCHES, QUEUE_ROWS, REQUESTS, REQUEST_SECONDS,
)  # fmt: skip
METRICS = tuple(dict.fromkeys(BULK + SERVING))
ACTOR_QUEUE = "num_external_inqueue_blocks"
"""Ray Data's own, exported as `ray_data_...` with the label `operator`: blocks, which are shards, that wait for an operator."""


class RegisteredMetrics:
    """Metrics of one process; its values are labelled with where they come from."""

    def __init__(self, source: str, wanted: tuple[Metric, ...]) -> None:
        self._made: dict[str, Any] = {metric.name: _make(metric, source) for metric in wanted}

    def count(self, metric: Metric, value: float, **tags: str) -> None:
        if value > 0:  # Ray's counters refuse 0
            self._made[metric.name].inc(value, tags)

    def work(self, *, rows: int, tokens: int, exits: list[int], layer_tokens: int, padding_tokens: int) -> None:
        """Count what an engine did."""
        self.count(ROWS, rows)
        self.count(TOKENS, tokens)
        self.count(LAYER_TOKENS, layer_tokens)
        self.count(PADDING_TOKENS, padding_tokens)
        self.count(BATCHES, 1)
        active = sum(exits)
        for layer, left in enumerate(exits, start=1):
            self.count(ACTIVE, active, layer=str(layer))
            self.count(EXITS, left, layer=str(layer))
            active -= left


def _make(metric: Metric, source: str) -> Any:
    if metric.kind == HISTOGRAM:
        made: Any = ray_metrics.Histogram(metric.name, metric.description, boundaries=SECONDS, tag_keys=metric.tags)
    else:
        kind = ray_metrics.Counter if metric.kind == COUNTER else ray_metrics.Gauge
        made = kind(metric.name, metric.description, tag_keys=metric.tags)
    made.set_default_tags({"source": source})
    return made
