"""The report of a bulk run: `_report.html` beside the manifest, made from sums and counts alone, never from rows.

`run_page` builds the page. Each section is one function below, in the order of `sections_of`; a section that has nothing to
show is None.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.bulk.progress import ROWS, Timeline, duration
from pipeline.calibration.limits.audited import over_classes
from pipeline.calibration.limits.limits import percent
from pipeline.calibration.summary import over_all_nights
from pipeline.calibration.verdict import AuditResult
from pipeline.histograms import length_bounds
from pipeline.output.totals import Totals
from pipeline.predicted import Comparison
from pipeline.reports.nights import over_nights
from pipeline.reports.page import Bars, Facts, Lines, Section, Table, render
from pipeline.reports.predictions import predictions

REPORT = "_report.html"
STEPS = 60
"""A chart over time has at most this many steps."""
MIN_BUNDLES = 6
"""A chart over time needs at least this many bundles to be worth drawing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """Everything that the report of a run shows."""

    folder: str
    """The output folder, which heads the page."""
    fingerprint: dict[str, str]
    """What decides the results, by name: model, criterion, tokenizer and so on."""
    files: int
    """The number of input files."""
    input_bytes: int
    """The size of all input files together."""
    seconds: float
    """The wall-clock time that this run took."""
    totals: Totals
    """The counts of the whole output folder, earlier runs included."""
    fresh: Totals
    """The counts of this run alone."""
    timeline: Timeline
    """What this run did over time."""
    audit: AuditResult
    """The audit of the rows that no earlier manifest covers."""
    predictions: Comparison = field(default_factory=Comparison)
    """What is predicted, beside what the manifest before says."""
    withheld: str = ""
    """Why nothing was published; empty if it was."""
    examples: Table | None = None
    """Rows with their texts, which are shown on request only."""


def run_page(run: RunSummary) -> str:
    """Return the report as a self-contained HTML page."""
    totals = run.totals
    tiles = [
        ("rows classified", f"{totals.rows_out:,}"),
        ("rows rejected", f"{totals.rows_rejected:,}"),
        ("rows a second", f"{run.fresh.rows_in / run.seconds:,.0f}" if run.seconds else "-"),
        ("fewer FLOPs than full depth", f"{totals.flops_speedup:.2f}x"),
        ("mean exit layer", f"{totals.mean_exit_layer:.2f} of {len(totals.exits)}"),
    ]
    made = time.strftime("%Y-%m-%d %H:%M %Z")
    subtitle = f"{run.folder} · {made} · this run: {run.fresh.rows_in:,} rows in {duration(run.seconds)}"
    sections = [section for section in sections_of(run) if section is not None]
    return render("offramp run", subtitle, tiles, sections)


def sections_of(run: RunSummary) -> list[Section | None]:
    """Return the sections from top to bottom; None stands for one that has nothing to show."""
    return [
        withheld(run),
        alarms(run.audit),
        rows(run.totals),
        exits(run.totals),
        *predictions(run.predictions),
        cost(run.totals),
        guarantee(run.audit),
        audit(run.audit),
        *over_nights(run.audit, run.predictions.new.classes),
        expected(run.audit),
        drift(run.audit),
        device_time(run.audit),
        uncertainty(run.totals),
        lengths(run.totals),
        rejects(run.totals),
        unreadable(run.totals),
        throughput(run.timeline),
        stages_over_time(run.timeline),
        stages(run.fresh),
        what_ran(run),
        run.examples,
    ]


def withheld(run: RunSummary) -> Section | None:
    """Say why these results are not published."""
    return Facts("Not published", [("why", run.withheld)]) if run.withheld else None


def what_ran(run: RunSummary) -> Section:
    """Show what decides the results, and how much input there was."""
    inputs = f"{run.files:,} files, {run.input_bytes / 1e6:,.1f} MB"
    return Facts("What ran", [("input", inputs), *run.fingerprint.items()])


def rows(totals: Totals) -> Section:
    """Show how many rows were read, classified, rejected and truncated."""
    pairs = [
        ("read", f"{totals.rows_in:,}"),
        ("classified", f"{totals.rows_out:,} of {totals.shards:,} shards"),
        ("rejected", f"{totals.rows_rejected:,}, each with a reason in _rejects/"),
        ("truncated", f"{totals.truncated:,} were longer than the model takes"),
        ("tokens", f"{totals.tokens:,}"),
    ]
    pairs += (
        [("windows", f"{totals.windows:,} of long texts and short ones")] if totals.windows > totals.rows_out else []
    )
    return Facts("Rows", pairs)


def rejects(totals: Totals) -> Section | None:
    """Count rejected rows by reason, the most frequent first."""
    by_count = sorted(totals.rejected.items(), key=lambda item: -item[1])
    return Bars("Rejected rows, by reason", by_count) if by_count else None


def unreadable(totals: Totals) -> Section | None:
    """List files that could not be read to their end."""
    if not totals.unreadable:
        return None
    lines = [[file, cause] for file, cause in totals.unreadable.items()]
    note = f"{totals.read_errors:,} stretches in all; _rejects/ has every one, as unreadable_file."
    return Table("Files that could not be read to their end", ["file", "cause"], lines, note)


def exits(totals: Totals) -> Section:
    """Count rows by the layer after which they exited."""
    counts = [(f"layer {layer}", rows) for layer, rows in enumerate(totals.exits, start=1)]
    return Bars("Where rows exited", counts, f"The mean is layer {totals.mean_exit_layer:.2f} of {len(totals.exits)}.")


def uncertainty(totals: Totals) -> Section | None:
    """Count rows by their uncertainty at the exit that they took, in ten equal bins."""
    fine = totals.uncertainty_histogram
    bins = [sum(fine[index : index + 2]) for index in range(0, len(fine), 2)]
    counts = [(f"{index / len(bins):.1f}-{(index + 1) / len(bins):.1f}", rows) for index, rows in enumerate(bins)]
    note = "At the exit that a row took; rows above the threshold went to full depth and are still uncertain there."
    return Bars("Uncertainty", counts, note) if any(bins) else None


def lengths(totals: Totals) -> Section | None:
    """Count rows by their number of tokens."""
    if not totals.length_histogram:
        return None
    names = [f"{low:,} or more" if high is None else f"{low:,}-{high:,}" for low, high in length_bounds()]
    counts = list(zip(names, totals.length_histogram, strict=True))
    return Bars("Length in tokens", counts, "As the model takes them: after truncation, special tokens included.")


def cost(totals: Totals) -> Section:
    """Compare the FLOPs spent with those of the plain full-depth model."""
    whole = totals.layer_tokens + totals.padding_tokens
    pairs = [
        ("spent", f"{totals.flops / 1e12:,.3f} TFLOPs, exit heads included"),
        ("plain model", f"{totals.flops_full_depth / 1e12:,.3f} TFLOPs on the same rows"),
        ("saved", f"{1 - totals.flops / totals.flops_full_depth:.1%}" if totals.flops_full_depth else "-"),
        ("padding", f"{totals.padding_tokens / whole:.2%} of all tokens x layers" if whole else "-"),
    ]
    return Facts("Cost against full depth", pairs)


def guarantee(result: AuditResult) -> Section | None:
    """Show what is guaranteed, in words."""
    clauses = result.limits.describe()
    if not clauses:
        return None
    note = (
        f"All of it together, with {percent(result.confidence)} confidence, by the calibration, for rows drawn like its own. "
        "An audit judges all rows and single classes; quality takes labels, which it does not have."
    )
    return Facts("What is guaranteed", [(f"{number}", clause) for number, clause in enumerate(clauses, 1)], note)


def audit(result: AuditResult) -> Section | None:
    """Compare predictions at the exits with those at full depth, on the audited rows."""
    if not result.rows and result.verdict == "none" and not result.classes:
        return None
    pairs = [
        ("audited", f"{result.rows:,} rows went to full depth as well"),
        ("differ", f"{result.differing:,} ({result.disagreement:.3%})"),
        ("true fraction", f"at most {result.at_most:.3%}, with {percent(result.confidence)} confidence"),
    ]
    if result.verdict != "none":
        pairs.append(("all nights", over_all_nights(result)))
    if result.classes:
        pairs.append(("classes, all nights", over_classes(result.classes)))
    return Facts("Audit", pairs, "Of the rows that no earlier manifest covers, unless all nights are named.")


def alarms(result: AuditResult) -> Section | None:
    """Name what has moved so far that it is worth a look or an alarm."""
    moved = [(f"{name}, {signal.state}", signal.moved) for name, signal in result.drift.items() if signal.state != "ok"]
    return (
        Facts("What has moved", moved, "Against the calibration; classes and scores against all nights before.")
        if moved
        else None
    )


def expected(result: AuditResult) -> Section | None:
    """Say what tonight's rows, audited or not, let one expect of the disagreement."""
    found = result.expected
    if found is None:
        return None
    pairs = [
        ("expected", f"{found.expected:.3%} of {found.rows:,} rows, by exit and uncertainty"),
        ("bounds", f"{found.at_least:.3%} to {found.at_most:.3%}, with {percent(found.confidence)} confidence each"),
        ("calibration", f"{found.calibration:.3%} of its rows; {found.chance:.3%} more may be chance"),
    ]
    pairs += [] if found.limit is None else [("limit", f"{found.limit:.3%}")]
    note = (
        "If rows are as risky as those of the calibration that exited where they did; the audit tests whether they are."
    )
    return Facts("Expected disagreement", pairs, note)


def drift(result: AuditResult) -> Section | None:
    """Compare the distribution of the rows with that of the calibration sample."""
    if not result.signals:
        return None
    cells = [[s.name, f"{s.psi:.3f}", f"{s.watch:.3f}", f"{s.alarm:.3f}", s.state] for s in result.signals]
    note = "PSI: population stability index against the calibration sample; of classes and scores, against all nights before."
    return Table("Drift", ["of", "PSI", "watch above", "alarm above", "state"], cells, note)


def device_time(result: AuditResult) -> Section | None:
    """Compare the actors' time with what full depth would have taken, estimated from the audited rows."""
    if result.full_depth_seconds is None:
        return None
    saved = result.full_depth_seconds - result.device_seconds - result.audit_seconds
    pairs = [
        ("classifying", f"{result.device_seconds:,.1f} device-seconds"),
        ("audit", f"{result.audit_seconds:,.1f} device-seconds"),
        ("full depth", f"about {result.full_depth_seconds:,.1f} device-seconds"),
    ]
    if result.price_per_hour is not None:
        pairs.append(("saved", f"{result.money(saved):.4g} in money, at {result.price_per_hour:g} an hour"))
    return Facts("Device time against full depth", pairs)


def throughput(timeline: Timeline) -> Section | None:
    """Chart rows a second over the run."""
    return _over_time(timeline, "Throughput over time", "rows a second", [ROWS])


def stages_over_time(timeline: Timeline) -> Section | None:
    """Chart how many workers each stage kept busy over the run."""
    note = "Counted when a bundle is done, so a stage appears a little later than it worked."
    stages = [name for name in timeline.names if name != ROWS]
    return _over_time(timeline, "Workers busy, by stage", "workers", stages, note)


def stages(fresh: Totals) -> Section | None:
    """List time and memory by stage."""
    cells = [
        [
            stage,
            f"{seconds:,.1f}",
            f"{fresh.cpu_seconds.get(stage, 0):,.1f}",
            f"{fresh.waits.get(stage, 0):,.1f}",
            f"{fresh.peak_mb.get(stage, 0):,.0f}",
        ]
        for stage, seconds in fresh.seconds.items()
    ]
    note = "Summed over all workers of this run, the time that bundles waited for a stage too; the peak is that of one worker."
    return (
        Table("Time and memory, by stage", ["stage", "seconds", "CPU seconds", "waited for", "peak MB"], cells, note)
        if cells
        else None
    )


def _over_time(timeline: Timeline, title: str, unit: str, names: Sequence[str], note: str = "") -> Section | None:
    """Chart sums of the bundles, per second, over the time at which the bundles were done."""
    if timeline.bundles < MIN_BUNDLES or timeline.last <= timeline.first:
        return None
    steps = min(STEPS, timeline.bundles // 2)
    values = {name: timeline.rates(name, steps) for name in names}
    return Lines(title, values, f"after {duration(timeline.first)}", duration(timeline.last), unit, note)
