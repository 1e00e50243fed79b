"""The evaluation report: tables as text and, with figures, as one self-contained HTML page."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment

from pipeline.benchmark.measure import Timing
from pipeline.calibration.curve import Calibration, Scaling
from pipeline.calibration.guarantees import upper_bound
from pipeline.evaluation.evaluation import Evaluation, OperatingPoint, cheapest_within
from pipeline.reports.page import STYLE, Table
from pipeline.reports.plots import Picture
from pipeline.storage.locate import write_text

DROPS = (0.005, 0.01, 0.03)
"""Losses of quality for which the table names the largest savings."""


def point_table(points: Sequence[OperatingPoint], metric: str) -> Table:
    """Lay out operating points."""
    layers = list(points[0].exits)
    head = ["criterion", metric, "agreement", "mean exit", "fewer FLOPs", *(f"exit {layer}" for layer in layers)]
    rows = []
    for p in points:
        name = "full depth" if p.criterion.full_depth else p.criterion.describe()
        cells = [name, f"{p.quality:.4f}", f"{p.agreement:.4f}", f"{p.mean_exit_layer:.2f}", f"{p.flops_speedup:.2f}x"]
        rows.append([*cells, *(f"{n:,}" for n in p.exits.values()), " ".join(map(str, p.exits_that_pay))])
    note = "Fewer FLOPs: those of the plain full-depth model over those spent, heads included, on the same rows."
    return Table("Chosen points", [*head, "exits that pay"], rows, note)


def savings_table(curves: Mapping[str, Sequence[OperatingPoint]], metric: str) -> Table:
    """Say for every criterion how many FLOPs can go for a given loss of quality."""
    head = ["criterion", f"{metric} at full depth", *(f"-{drop:.1%}" for drop in DROPS)]
    rows = []
    for name, points in curves.items():
        cells = [name, f"{points[0].quality:.4f}"]
        for drop in DROPS:
            best = cheapest_within(points, drop)
            cells.append(f"{best.flops_speedup:.2f}x ({best.quality:.4f}, {best.criterion.describe()})")
        rows.append(cells)
    note = (
        f"Largest saving of FLOPs at which the {metric} is at most so much below full depth, chosen on these very rows."
    )
    return Table("What can be saved", head, rows, note)


def timing_table(points: Sequence[OperatingPoint], timings: Sequence[Timing], rows: int) -> Table:
    """Lay measured times out beside what the FLOPs say; the first point is full depth."""
    cells = []
    for point, timing in zip(points, timings, strict=True):
        name = "full depth" if point.criterion.full_depth else point.criterion.describe()
        faster = f"{timing.speedup_over(timings[0]):.2f}x"
        cells.append([name, f"{rows / timing.median:,.0f}", faster, f"{point.flops_speedup:.2f}x"])
    note = "Median of rounds in which all points take turns; the engine alone, without reading and tokenizing."
    return Table("Wall-clock time", ["criterion", "rows/s", "faster", "fewer FLOPs"], cells, note)


def quality_table(evaluation: Evaluation) -> Table:
    """Give all measures of every exit, all rows leaving there."""
    names = list(evaluation.metrics)
    by_name = {name: evaluation.by_layer(name) for name in names}
    rows = [[str(layer), *(f"{by_name[name][layer]:.4f}" for name in names)] for layer in evaluation.recorded.layers]
    return Table("Every exit on all rows", ["exit after layer", *names], rows)


def scaling_table(scalings: Sequence[Scaling]) -> Table:
    """Lay out what temperature scaling did to every exit."""
    rows = [
        [str(s["layer"]), f"{s['temperature']:.3f}", f"{s['error_before']:.2%}", f"{s['error_after']:.2%}"]
        for s in scalings
    ]
    head = ["exit after layer", "temperature", "calibration error before", "after"]
    return Table("Temperature of every exit", head, rows, "Expected calibration error, 15 bins (Guo et al. 2017).")


def calibration_table(calibration: Calibration, confidence: float) -> Table:
    """Say what can be asked of a calibrated model."""
    curve, timing, rows = calibration.curve, calibration.timing, []
    for name, choice in calibration.choices.items():
        bound = "" if choice.differing is None else f"{upper_bound(choice.differing, curve.tested, confidence):.3%}"
        time = "" if timing is None else f"{timing.time_of(choice.flops_speedup):.2f}x"
        cells = [name, "full depth" if choice.criterion.full_depth else choice.criterion.describe()]
        differing = "" if choice.differing is None else f"{choice.differing:,}"
        rows.append([*cells, f"{choice.flops_speedup:.2f}x", time, differing, bound])
    head = ["asked", "thresholds", "fewer FLOPs", "faster", "differing", f"bound ({confidence:.0%})"]
    note = f"Differing: of the {curve.tested:,} rows that tested, answers other than at full depth; bound: Clopper-Pearson."
    return Table("What can be asked", head, rows, note)


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style|safe }}</style></head><body>
<h1>{{ title }}</h1>
{% for line in facts %}<p>{{ line }}</p>{% endfor %}
{% for table in tables %}<h2>{{ table.title }}</h2>
<div class="wide"><table><thead><tr>{% for cell in table.head %}<th>{{ cell }}</th>{% endfor %}</tr></thead><tbody>
{% for row in table.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}
</tbody></table></div>{% if table.note %}<p class="note">{{ table.note }}</p>{% endif %}{% endfor %}
{% for picture in pictures %}<figure><img src="data:image/png;base64,{{ picture.png }}" alt="{{ picture.caption }}">
<figcaption>{{ picture.caption }}</figcaption></figure>{% endfor %}
</body></html>
"""


def write_report(
    folder: Path, title: str, facts: Sequence[str], tables: Sequence[Table], pictures: Sequence[Picture]
) -> Path:
    """Write report.html, which needs no other file, and every figure as PNG beside it; return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    shown = []
    for picture in pictures:
        image = io.BytesIO()
        picture.figure.savefig(image, format="png")
        (folder / f"{picture.name}.png").write_bytes(image.getvalue())
        shown.append({"png": base64.b64encode(image.getvalue()).decode(), "caption": picture.caption})
    page = Environment(autoescape=True).from_string(PAGE)
    path = folder / "report.html"
    write_text(path, page.render(style=STYLE, title=title, facts=facts, tables=tables, pictures=shown))
    return path
