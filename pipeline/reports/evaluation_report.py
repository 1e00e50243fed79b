"""The evaluation report: tables as text and, with figures, as one self-contained HTML page."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from models.exits.criterion import Criterion
from pipeline.benchmark.measure import Timing
from pipeline.evaluation.evaluation import Evaluation, OperatingPoint, cheapest_within
from pipeline.evaluation.metrics import REGRESSION
from pipeline.reports.page import Figure, Section, Table, render
from pipeline.reports.plots import Picture
from pipeline.storage.locate import write_text

DROPS = (0.005, 0.01, 0.03)
"""Losses of quality for which the report names the largest savings."""


def points_to_report(
    evaluation: Evaluation, name: str, curve: Sequence[OperatingPoint], speeds: Sequence[float]
) -> list[OperatingPoint]:
    """Return full depth, the criterion `name` at these thresholds, and its cheapest points for DROPS, each once."""
    wanted = [evaluation.at(Criterion(name=name, speed=speed)) for speed in speeds]
    cheapest = [cheapest_within(curve, drop) for drop in DROPS]
    return list({point.criterion: point for point in [evaluation.full_depth(), *wanted, *cheapest]}.values())


def point_table(points: Sequence[OperatingPoint], metric: str) -> Table:
    """Return a table of operating points: quality, cost and exits of each."""
    layers = list(points[0].exits)
    agreement = f"{metric} against full depth" if metric in REGRESSION else "agreement"
    head = ["criterion", metric, agreement, "mean exit", "fewer FLOPs", *(f"exit {layer}" for layer in layers)]
    rows = []
    for p in points:
        cells = [_name(p), f"{p.quality:.4f}", f"{p.agreement:.4f}", f"{p.mean_exit_layer:.2f}"]
        cells += [f"{p.flops_speedup:.2f}x", *(f"{n:,}" for n in p.exits.values())]
        rows.append([*cells, " ".join(map(str, p.worthwhile_exits))])
    note = (
        "Agreement: rows with the class, or the label set, of full depth. "
        "Fewer FLOPs: those of the plain full-depth model over those spent, heads included, on the same rows. "
        "Worthwhile exits: the cheapest ones to evaluate for these rows."
    )
    return Table("Chosen points", [*head, "worthwhile exits"], rows, note)


def savings_table(curves: Mapping[str, Sequence[OperatingPoint]], metric: str) -> Table:
    """Return the largest saving of FLOPs for given losses of quality, by criterion."""
    head = ["criterion", f"{metric} at full depth", *(f"-{drop:.1%}" for drop in DROPS)]
    rows = []
    for name, points in curves.items():
        cells = [name, f"{points[0].quality:.4f}"]
        for drop in DROPS:
            best = cheapest_within(points, drop)
            cells.append(f"{best.flops_speedup:.2f}x ({best.quality:.4f}, {best.criterion.describe()})")
        rows.append(cells)
    note = f"The largest saving of FLOPs with which {metric} is at most this far below full depth, chosen on these very rows."
    return Table("What can be saved", head, rows, note)


def comparison_table(name: str, lines: Mapping[str, Sequence[OperatingPoint]], metric: str) -> Table:
    """Return what each compared model costs at its full depth, beside the first one as good, and as cheap."""
    first, *others = lines
    rows = []
    for other in others:
        full = lines[other][0]
        as_good = [point.flops_speedup for point in lines[first] if point.quality >= full.quality]
        as_cheap = [point.quality for point in lines[first] if point.flops_speedup >= full.flops_speedup]
        cheaper = max(as_good, default=0.0)
        wins = name if cheaper > full.flops_speedup else other
        cells = [f"{full.quality:.4f}", f"{full.flops_speedup:.2f}x", f"{cheaper:.2f}x" if cheaper else "never so good"]
        rows.append([other, *cells, f"{max(as_cheap):.4f}" if as_cheap else "never so cheap", wins])
    head = ["model, at full depth", metric, "fewer FLOPs", f"{name}, as good", f"{name}, as cheap", "cheaper"]
    note = (
        f"FLOPs of all are over those of {name} at full depth; its exits are at the best threshold for these very rows."
    )
    return Table("Beside other models", head, rows, note)


def timing_table(points: Sequence[OperatingPoint], timings: Sequence[Timing], rows: int) -> Table:
    """Return measured speed-ups beside those in FLOPs; the first point is full depth."""
    cells = []
    for point, timing in zip(points, timings, strict=True):
        faster = f"{timing.speedup_over(timings[0]):.2f}x"
        cells.append([_name(point), f"{rows / timing.median:,.0f}", faster, f"{point.flops_speedup:.2f}x"])
    note = "Median of rounds in which all points take turns; the engine alone, without reading and tokenizing."
    return Table("Wall-clock time", ["criterion", "rows/s", "faster", "fewer FLOPs"], cells, note)


def quality_table(evaluation: Evaluation) -> Table:
    """Return every metric at every exit when all rows exit there."""
    by_name = {name: evaluation.by_layer(name) for name in evaluation.metrics}
    rows = [
        [str(layer), *(f"{scores[layer]:.4f}" for scores in by_name.values())] for layer in evaluation.recorded.layers
    ]
    return Table("Every exit on all rows", ["exit after layer", *by_name], rows)


def _name(point: OperatingPoint) -> str:
    """Return the criterion of a point as tables name it."""
    return "full depth" if point.criterion.full_depth else point.criterion.describe()


def write_report(folder: Path, title: str, subtitle: str, tables: Sequence[Table], pictures: Sequence[Picture]) -> Path:
    """Write report.html, which needs no other file, and every figure as PNG beside it; return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    sections: list[Section] = [*tables]
    for picture in pictures:
        png = picture.png()
        (folder / f"{picture.name}.png").write_bytes(png)
        sections.append(Figure(picture.title, png, picture.caption))
    path = folder / "report.html"
    write_text(path, render(title, subtitle, [], sections))
    return path
