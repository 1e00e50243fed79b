"""Metrics of a bulk run, exported by its driver."""

from pipeline.cluster.monitoring import COUNTER, ENGINE, STAGE_SECONDS, Metric, RegisteredMetrics
from pipeline.output.counts import Counts

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
