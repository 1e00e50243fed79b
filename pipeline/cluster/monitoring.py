"""Metrics for watching a run or a server, through Ray's own exporter: `/metrics` of every node, in Prometheus' text format.

Ray puts `ray_` before a name and `_total` after a counter's, exports a value some ten seconds late, and keeps the series of
processes that have ended. Exact totals are in the manifest; these are for watching. A bulk run reports from its driver, as
receipts come in (bulk/run_log.py), and a server from its replicas (serving/metrics.py).
"""

from dataclasses import dataclass
from typing import Any

from ray.util import metrics as ray_metrics

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]
"""Upper bounds of latency buckets: the defaults of Prometheus' client libraries, and 30 s for what waits in the queue."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric that offramp exports."""

    name: str
    kind: str
    tags: tuple[str, ...]
    description: str

    @property
    def exported(self) -> str:
        """Return the name that Prometheus sees, to which a histogram's series add `_bucket`, `_sum` and `_count`."""
        return f"ray_{self.name}" + ("_total" if self.kind == COUNTER else "")


ROWS = Metric("offramp_rows", COUNTER, ("source",), "Rows classified.")
TOKENS = Metric("offramp_tokens", COUNTER, ("source",), "Tokens of the classified rows.")
EXITS = Metric("offramp_exits", COUNTER, ("source", "layer"), "Rows that exited at this layer.")
ACTIVE = Metric("offramp_active_rows", COUNTER, ("source", "layer"), "Rows that went through this layer.")
LAYER_TOKENS = Metric("offramp_layer_tokens", COUNTER, ("source",), "Tokens x layers computed, without padding.")
PADDING_TOKENS = Metric("offramp_padding_tokens", COUNTER, ("source",), "Tokens x layers computed for padding.")
STAGE_SECONDS = Metric(
    "offramp_stage_seconds", COUNTER, ("source", "stage"), "Seconds spent in a stage, by all workers."
)
BATCHES = Metric("offramp_batches", COUNTER, ("source",), "Calls of the engine; in a bulk run, shards.")
ENGINE = (ROWS, TOKENS, EXITS, ACTIVE, LAYER_TOKENS, PADDING_TOKENS, STAGE_SECONDS, BATCHES)
"""Metrics of the engine's work, which bulk runs and servers both export."""


class RegisteredMetrics:
    """Metrics that this process has registered with Ray, each value tagged with its source ("bulk" or "serve")."""

    def __init__(self, source: str, metrics: tuple[Metric, ...]) -> None:
        self._registered: dict[str, Any] = {metric.name: _register(metric, source) for metric in metrics}

    def count(self, metric: Metric, value: float, **tags: str) -> None:
        """Add to a counter."""
        if value > 0:  # Ray's counters refuse 0
            self._registered[metric.name].inc(value, tags)

    def set(self, metric: Metric, value: float) -> None:
        """Set a gauge."""
        self._registered[metric.name].set(value)

    def observe(self, metric: Metric, value: float) -> None:
        """Add a value to a histogram."""
        self._registered[metric.name].observe(value)

    def count_work(self, *, rows: int, tokens: int, exits: list[int], layer_tokens: int, padding_tokens: int) -> None:
        """Count a call of the engine; `exits` holds its rows by exit layer, layer 1 first."""
        self.count(ROWS, rows)
        self.count(TOKENS, tokens)
        self.count(LAYER_TOKENS, layer_tokens)
        self.count(PADDING_TOKENS, padding_tokens)
        self.count(BATCHES, 1)
        active = sum(exits)
        for layer, exited in enumerate(exits, start=1):
            self.count(ACTIVE, active, layer=str(layer))
            self.count(EXITS, exited, layer=str(layer))
            active -= exited


def _register(metric: Metric, source: str) -> Any:
    if metric.kind == HISTOGRAM:
        made: Any = ray_metrics.Histogram(metric.name, metric.description, boundaries=SECONDS, tag_keys=metric.tags)
    else:
        kind = ray_metrics.Counter if metric.kind == COUNTER else ray_metrics.Gauge
        made = kind(metric.name, metric.description, tag_keys=metric.tags)
    made.set_default_tags({"source": source})
    return made
