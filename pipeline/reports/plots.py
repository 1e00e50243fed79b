"""Figures of the evaluation and calibration reports.

Every function takes plain numbers and returns a matplotlib Figure of its own, apart from pyplot and without touching its global
settings. matplotlib comes with the extra `report` and is imported when the first figure is drawn.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models.exits.criterion import Criterion
from pipeline.calibration.curve import Curve
from pipeline.calibration.guarantees import upper_bound
from pipeline.calibration.limits.limits import percent
from pipeline.errors import printable, require
from pipeline.evaluation.evaluation import Evaluation, OperatingPoint, accuracy_by_uncertainty
from pipeline.reports.palette import CYCLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (7.2, 4.2)
"""Width and height of a figure in inches."""
DPI = 110
MAX_LEGEND = 60
"""Characters of a name in a legend."""
SPEEDS = (0.1, 0.3, 0.6)
"""The thresholds of the figure that shows exits by layer."""
QUALITY_SHOWN = 0.12
"""The trade-off figure shows quality down to this much below full depth."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawn figure with its file name, its heading on the page, and a caption that says what to see in it."""

    name: str
    title: str
    figure: "Figure"
    caption: str

    def png(self) -> bytes:
        """Return the figure as a PNG image."""
        image = io.BytesIO()
        self.figure.savefig(image, format="png")
        return image.getvalue()


def figures(
    name: str,
    evaluation: Evaluation,
    curves: Mapping[str, Sequence[OperatingPoint]],
    criterion: str,
    compared: Mapping[str, Evaluation],
    log: Path,
) -> list[Picture]:
    """Draw all figures that make sense for a model called `name`, other models compared with it, and its training log.

    `curves` are the model's points by criterion; `criterion` is the one that figures about a single criterion show.
    """
    metric = evaluation.metric
    scores = {name: evaluation.by_layer()} | {other: theirs.by_layer() for other, theirs in compared.items()}
    pictures = [
        Picture(
            "trade-off", "Quality against cost", trade_off(curves, metric), "By all criteria that this model can use."
        ),
        Picture(
            "layers",
            "Quality by layer",
            by_layer(scores, metric),
            "The quality of every exit if all rows exited there.",
        ),
    ]
    if compared:
        lines = {name: curves[criterion]} | lines_of(evaluation, compared, criterion)
        caption = (
            f"Models side by side, all by {criterion}; a single dot is a model without early exit. FLOPs of all are "
        )
        caption += f"over those of {name} at full depth."
        pictures.append(Picture("models", "Models compared", trade_off(lines, metric), caption))
    if criterion != "patience":
        pictures += _uncertainty_pictures(evaluation, criterion)
    training = convergence(log)
    if training is not None:
        pictures.append(Picture("training", "Training", training, "Loss and dev scores while this model was trained."))
    return pictures


def lines_of(
    evaluation: Evaluation, compared: Mapping[str, Evaluation], criterion: str
) -> dict[str, list[OperatingPoint]]:
    """Return the points of compared models by their labels in figures, FLOPs over those of the first one at full depth.

    They are a model's curve, or full depth alone if it cannot use the criterion.
    """
    lines = {}
    for name, other in compared.items():
        exits = criterion in other.criteria()
        points = other.curve(criterion) if exits else [other.full_depth()]
        lines[name if exits else f"{name}, no early exit"] = other.beside(evaluation, points)
    return lines


def _uncertainty_pictures(evaluation: Evaluation, criterion: str) -> list[Picture]:
    """Draw the figures about a criterion that measures uncertainty."""
    pictures = [
        Picture(
            "exits",
            "Where rows exit",
            exits_at_speeds(evaluation, criterion),
            "Rows by exit layer at three thresholds.",
        ),
        Picture(
            "uncertainty",
            "Uncertainty by layer",
            uncertainty_by_layer(evaluation, criterion),
            "The uncertainty of all rows at every exit. Exits that know more are less uncertain.",
        ),
    ]
    if not evaluation.recorded.regression:
        figure = lower_uncertainty_higher_accuracy(evaluation, criterion)
        caption = "If uncertainty means something, lines fall from left to right. Large dots hold many rows."
        pictures.append(Picture("luha", "Accuracy by uncertainty", figure, caption))
    return pictures


def trade_off(curves: Mapping[str, Sequence[OperatingPoint]], metric: str) -> "Figure":
    """Draw quality against FLOPs, one line a criterion or model, through the points that no other point beats."""
    figure, axes = _new(f"{metric} against FLOPs", "FLOPs, fraction of the plain full-depth model", metric)
    for color, (name, points) in zip(_colors(len(curves)), curves.items(), strict=True):
        best = _pareto_front(points)
        cost = [1 / point.flops_speedup for point in best]
        axes.plot(cost, [point.quality for point in best], marker="o", markersize=3, color=color, label=_legend(name))
    full = next(iter(curves.values()))[0]
    axes.axhline(full.quality, color="grey", linewidth=1, linestyle="--")
    axes.annotate(
        "full depth", (0.01, full.quality), xycoords=("axes fraction", "data"), va="bottom", color="grey", fontsize=9
    )
    qualities = [point.quality for points in curves.values() for point in points]
    axes.set_ylim(max(full.quality - QUALITY_SHOWN, min(qualities) - 0.01), max(qualities) + 0.01)
    axes.set_xlim(left=0)
    axes.legend(frameon=False, loc="lower right")
    return figure


def by_layer(scores: Mapping[str, Mapping[int, float]], metric: str) -> "Figure":
    """Draw the quality of every exit when all rows exit there, one line a model (BERxiT, figure 4)."""
    figure, axes = _new(f"{metric} of every exit on all rows", "exit after layer", metric)
    for color, (name, by_exit) in zip(_colors(len(scores)), scores.items(), strict=True):
        axes.plot(list(by_exit), list(by_exit.values()), marker="o", color=color, label=_legend(name))
    axes.set_xticks(sorted({layer for by_exit in scores.values() for layer in by_exit}))
    axes.legend(frameon=False, loc="lower right")
    return figure


def exits_at_speeds(evaluation: Evaluation, name: str) -> "Figure":
    """Draw the fraction of rows that exit after every layer, at three thresholds (FastBERT, figure 5)."""
    figure, axes = _new(f"where rows exit, by {name}", "exit after layer", "fraction of rows")
    layers = np.array(evaluation.recorded.layers)
    for number, (color, speed) in enumerate(zip(CYCLE, SPEEDS, strict=False)):
        point = evaluation.at(Criterion(name=name, speed=speed))
        fractions = np.array(list(point.exits.values())) / max(sum(point.exits.values()), 1)
        label = f"speed {speed:g}: {point.flops_speedup:.1f}x fewer FLOPs"
        axes.bar(layers + (number - 1) * 0.27, fractions, width=0.25, color=color, label=label)
    axes.set_xticks(layers)
    axes.legend(frameon=False)
    return figure


def uncertainty_by_layer(evaluation: Evaluation, name: str) -> "Figure":
    """Draw a histogram of the uncertainty of all rows, one line of the picture a layer (FastBERT, figure 4)."""
    figure, axes = _new(f"uncertainty ({name}) at every exit, all rows", "uncertainty", "exit after layer")
    uncertainty_EB = evaluation.recorded.uncertainty(Criterion(name=name, speed=0.5))
    layers = evaluation.recorded.layers
    fractions = [np.histogram(row, bins=25, range=(0, 1))[0] / max(len(row), 1) for row in uncertainty_EB]
    image = axes.imshow(
        fractions, aspect="auto", origin="lower", cmap="viridis", extent=(0, 1, 0.5, len(layers) + 0.5), vmin=0
    )
    axes.set_yticks(range(1, len(layers) + 1), [str(layer) for layer in layers])
    figure.colorbar(image, label="fraction of rows")
    return figure


def lower_uncertainty_higher_accuracy(evaluation: Evaluation, name: str) -> "Figure":
    """Draw accuracy by uncertainty over all rows, for up to four layers (FastBERT's LUHA, figure 3)."""
    figure, axes = _new("lower uncertainty, higher accuracy?", f"uncertainty ({name})", "accuracy")
    recorded = evaluation.recorded
    uncertainty_EB = recorded.uncertainty(Criterion(name=name, speed=0.5))
    count = len(recorded.layers)
    for color, exit_ in zip(CYCLE, sorted({0, count // 3, 2 * count // 3, count - 1}), strict=False):
        middle, accuracy, rows = accuracy_by_uncertainty(uncertainty_EB[exit_], evaluation.correct(exit_))
        middle, accuracy, rows = middle[rows > 0], accuracy[rows > 0], rows[rows > 0]
        axes.plot(middle, accuracy, color=color, label=f"layer {recorded.layers[exit_]}", zorder=1)
        axes.scatter(middle, accuracy, s=6 + 300 * rows / rows.sum(), color=color, alpha=0.6, zorder=2)
    axes.set_xlim(0, 1)
    axes.legend(frameon=False, title="area: rows")
    return figure


def convergence(log: Path) -> "Figure | None":
    """Draw loss and dev scores over the steps of a training log; None if there is no log or nothing in it."""
    if not log.is_file():
        return None
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "dev" not in line]
    epochs = [line for line in lines if "dev" in line]
    if not steps or not epochs:
        return None
    figure, axes = _new("training", "step", "loss")
    loss = np.array([line["loss"] for line in steps])
    axes.plot([line["step"] for line in steps], loss, color="lightgrey", label="loss of a step")
    window = max(1, len(loss) // 20)
    smooth = np.convolve(loss, np.ones(window) / window, mode="valid")
    axes.plot([line["step"] for line in steps][window - 1 :], smooth, color="black", label="moving mean")
    axes.set_ylim(0, float(np.quantile(loss, 0.99)) * 1.1)
    right = axes.twinx()
    right.spines[["top", "right"]].set_visible(False)
    for color, layer in zip(_colors(len(epochs[0]["dev"])), epochs[0]["dev"], strict=True):
        scores = [line["dev"][layer] for line in epochs]
        right.plot([line["step"] for line in epochs], scores, marker="o", color=color, label=f"dev, exit {layer}")
    right.set_ylabel("dev score")
    handles = [*axes.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=4)
    return figure


def disagreement_curve(curve: Curve, confidence: float) -> "Figure":
    """Draw disagreement with full depth against FLOPs along a calibrated path, with its upper confidence bound."""
    figure, axes = _new(
        "what early exit changes", "FLOPs, fraction of the plain full-depth model", "different predictions, %"
    )
    observed = 100 * np.array(curve.differing) / max(curve.tested, 1)
    bounds = [100 * upper_bound(count, curve.tested, confidence) for count in curve.differing]
    axes.plot(curve.flops_fractions, observed, color=CYCLE[0], label=f"observed on {curve.tested:,} rows")
    axes.plot(
        curve.flops_fractions[1:], bounds[1:], color=CYCLE[1], label=f"upper bound, {percent(confidence)} confidence"
    )
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 5 if max(bounds[1:], default=0) > 5 else None)
    axes.legend(frameon=False, loc="upper right")
    return figure


def _pareto_front(points: Sequence[OperatingPoint]) -> list[OperatingPoint]:
    """Return the points that no other point beats in both quality and cost, the cheapest first."""
    best: list[OperatingPoint] = []
    for point in sorted(points, key=lambda p: (-p.flops_speedup, -p.quality)):
        if not best or point.quality > best[-1].quality:
            best.append(point)
    return best


def _colors(count: int) -> list[str]:
    """Return this many colors, starting over where the palette ends."""
    return [CYCLE[number % len(CYCLE)] for number in range(count)]


def _legend(name: str) -> str:
    r"""Return a name, of a model's folder perhaps, as matplotlib shows it: it takes what is between two $ for a formula."""
    return printable(name, MAX_LEGEND).replace("$", r"\$")


def _new(title: str, x: str, y: str) -> "tuple[Figure, Axes]":
    """Return an empty figure with its axes, in the style of all figures; raise MissingPackageError without matplotlib."""
    require("matplotlib", extra="report")
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes
