"""The report of a bulk run: `_report.html` beside the manifest, from sums and counts alone. One function a section, below."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from pipeline.bulk.progress import duration
from pipeline.bulk.timeline import Moment, Timeline
from pipeline.calibration.verdict import AuditResult
from pipeline.output.histograms import length_bounds
from pipeline.output.totals import Totals
from pipeline.reports.page import Bars, Facts, Lines, Section, Table, render

REPORT = "_report.html"
STEPS = 60
"""Points of a line over time, at most."""
FEWEST_MOMENTS = 6
"""Shards that make a line worth drawing."""
CAUSES_SHOWN = 50


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What the report tells of."""

    folder: str
    fingerprint: dict[str, str]
    files: int
    input_bytes: int
    seconds: float
    """Of this run."""
    totals: Totals
    """Of the whole output folder."""
    fresh: Totals
    """Of this run."""
    timeline: Timeline
    found: AuditResult
    """By the audit, in rows that were not published before."""
    examples: Table | None = None
    """Rows with their texts, which nobody shows without being asked."""


def run_page(run: RunSummary) -> str:
    """Build the page."""
    totals = run.totals
    tiles = [
        ("rows answered", f"{totals.rows_out:,}"),
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
    """Build the page from top to bottom; None where there is nothing to say."""
    return [
        rows(run.totals),
        exits(run.totals),
        cost(run.totals),
        audit(run.found),
        drift(run.found),
        device_time(run.found),
        uncertainty(run.totals),
        lengths(run.totals),
        rejects(run.totals),
        unreadable(run.totals),
        throughput(run.timeline.moments),
        stages_over_time(run.timeline.moments),
        stages(run.fresh),
        what_ran(run),
        run.examples,
    ]


def what_ran(run: RunSummary) -> Section:
    """Everything that decides the answers, and what it ran on."""
    inputs = f"{run.files:,} files, {run.input_bytes / 1e6:,.1f} MB"
    return Facts("What ran", [("input", inputs), *run.fingerprint.items()])


def rows(totals: Totals) -> Section:
    """Where the rows went."""
    pairs = [
        ("read", f"{totals.rows_in:,}"),
        ("answered", f"{totals.rows_out:,} in {totals.shards:,} parts"),
        ("rejected", f"{totals.rows_rejected:,}, each with a reason in _rejects/"),
        ("truncated", f"{totals.truncated:,} were longer than the model reads"),
        ("tokens", f"{totals.tokens:,}"),
    ]
    return Facts("Rows", pairs)


def rejects(totals: Totals) -> Section | None:
    """Rejects by reason."""
    by_count = sorted(totals.rejected.items(), key=lambda item: -item[1])
    return Bars("Rejected rows, by reason", by_count) if by_count else None


def unreadable(totals: Totals) -> Section | None:
    """Files that could not be read to their end."""
    if not totals.unreadable:
        return None
    lines = [[file, cause] for file, cause in list(totals.unreadable.items())[:CAUSES_SHOWN]]
    left = len(totals.unreadable) - len(lines)
    return Table(
        "Files that could not be read to their end", ["file", "cause"], lines, f"and {left:,} more" * (left > 0)
    )


def exits(totals: Totals) -> Section:
    """Rows by the layer after which they left."""
    counts = [(f"layer {layer}", rows) for layer, rows in enumerate(totals.exits, start=1)]
    return Bars("Where rows left", counts, f"The mean is layer {totals.mean_exit_layer:.2f} of {len(totals.exits)}.")


def uncertainty(totals: Totals) -> Section | None:
    """Rows by their uncertainty at the exit."""
    fine = totals.uncertainty_histogram
    bins = [sum(fine[place : place + 2]) for place in range(0, len(fine), 2)]
    counts = [(f"{place / len(bins):.1f}-{(place + 1) / len(bins):.1f}", rows) for place, rows in enumerate(bins)]
    note = "At the exit that the row took; rows right of the speed went to full depth and are uncertain still."
    return Bars("Uncertainty", counts, note) if any(bins) else None


def lengths(totals: Totals) -> Section | None:
    """Rows by their length."""
    if not totals.length_histogram:
        return None
    names = [f"{low:,} or more" if high is None else f"{low:,}-{high:,}" for low, high in length_bounds()]
    counts = list(zip(names, totals.length_histogram, strict=True))
    return Bars("Length in tokens", counts, "As the model reads them, special tokens included.")


def cost(totals: Totals) -> Section:
    """What was computed, beside what the plain model would have."""
    whole = totals.layer_tokens + totals.padding_tokens
    pairs = [
        ("spent", f"{totals.flops / 1e12:,.3f} TFLOPs, exit heads included"),
        ("plain model", f"{totals.flops_full_depth / 1e12:,.3f} TFLOPs on the same rows"),
        ("saved", f"{1 - totals.flops / totals.flops_full_depth:.1%}" if totals.flops_full_depth else "-"),
        ("padding", f"{totals.padding_tokens / whole:.2%} of all tokens x layers" if whole else "-"),
    ]
    return Facts("Cost against full depth", pairs)


def audit(found: AuditResult) -> Section | None:
    """Early answers against those of full depth, on the rows that were drawn for it."""
    if not found.rows:
        return None
    pairs = [
        ("audited", f"{found.rows:,} rows went to full depth as well"),
        ("differ", f"{found.differing:,} ({found.disagreement:.3%})"),
        ("true share", f"at most {found.at_most:.3%}, with {found.confidence:.0%} confidence"),
    ]
    if found.limit is not None:
        pairs.append(("limit", f"{found.limit:.3%}: {found.verdict}"))
    return Facts("Audit", pairs, "Of the rows that no manifest told of before.")


def drift(found: AuditResult) -> Section | None:
    """Whether the rows look like those of the calibration."""
    if not found.signals:
        return None
    cells = [[s.name, f"{s.psi:.3f}", f"{s.watch:.3f}", f"{s.alarm:.3f}", s.state] for s in found.signals]
    note = "Population stability index against the calibration."
    return Table("Drift", ["of", "index", "watch above", "alarm above", "state"], cells, note)


def device_time(found: AuditResult) -> Section | None:
    """Time of the actors, and what full depth would have taken by the audited rows."""
    if found.full_depth_seconds is None:
        return None
    saved = found.full_depth_seconds - found.device_seconds - found.audit_seconds
    pairs = [
        ("classifying", f"{found.device_seconds:,.1f} device-seconds"),
        ("audit", f"{found.audit_seconds:,.1f} device-seconds"),
        ("full depth", f"about {found.full_depth_seconds:,.1f} device-seconds"),
    ]
    if found.price_per_hour is not None:
        pairs.append(("saved", f"{found.money(saved):.4g} in money, at {found.price_per_hour:g} an hour"))
    return Facts("Device time against full depth", pairs)


def throughput(moments: Sequence[Moment]) -> Section | None:
    """Rows a second over the run."""
    return _over_time(moments, "Throughput over time", "rows a second", {"rows": lambda moment: moment.rows})


def stages_over_time(moments: Sequence[Moment]) -> Section | None:
    """How many workers each stage kept busy over the run."""
    names = dict.fromkeys(stage for moment in moments for stage in moment.seconds)
    readers = {name: partial(_seconds_of, name) for name in names}
    note = "Counted when a shard is done, so a stage shows up a little later than it worked."
    return _over_time(moments, "Workers busy, by stage", "workers", readers, note)


def _seconds_of(stage: str, moment: Moment) -> float:
    return moment.seconds.get(stage, 0.0)


def stages(fresh: Totals) -> Section | None:
    """Time and memory by stage."""
    cells = [
        [stage, f"{seconds:,.1f}", f"{fresh.cpu_seconds.get(stage, 0):,.1f}", f"{fresh.peak_mb.get(stage, 0):,.0f}"]
        for stage, seconds in fresh.seconds.items()
    ]
    note = "Of this run, over all workers."
    return (
        Table("Time and memory, by stage", ["stage", "seconds", "CPU seconds", "peak MB"], cells, note)
        if cells
        else None
    )


def _over_time(
    moments: Sequence[Moment], title: str, unit: str, readers: Mapping[str, Callable[[Moment], float]], note: str = ""
) -> Section | None:
    """Sum what shards say, by the time at which they came in, per second."""
    if len(moments) < FEWEST_MOMENTS or moments[-1].at <= moments[0].at:
        return None
    first, span = moments[0].at, moments[-1].at - moments[0].at
    steps = min(STEPS, len(moments) // 2)
    values = {name: [0.0] * steps for name in readers}
    for moment in moments[1:]:  # the work of the first was done before this clock starts
        step = min(int((moment.at - first) / span * steps), steps - 1)
        for name, read in readers.items():
            values[name][step] += read(moment) * steps / span
    return Lines(title, values, f"after {duration(first)}", duration(moments[-1].at), unit, note)
