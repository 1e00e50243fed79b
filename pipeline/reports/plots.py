"""Figures of the evaluation report. Every function takes plain numbers and returns a matplotlib Figure of its own."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from models.exits.criterion import Criterion
from pipeline.calibration.curve import Curve
from pipeline.calibration.guarantees import upper_bound
from pipeline.evaluation.evaluation import Evaluation, OperatingPoint, luha

matplotlib.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110})
SIZE = (7.2, 4.2)
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's palette, which color-blind readers can tell apart."""
SPEEDS = (0.1, 0.3, 0.6)
"""Of the figure with exits per layer at three speeds."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure with its file name and what to see in it."""

    name: str
    figure: Figure
    caption: str


def figures(
    own: str,
    evaluation: Evaluation,
    curves: Mapping[str, Sequence[OperatingPoint]],
    criterion: str,
    compared: Mapping[str, Evaluation],
    log: Path,
) -> list[Picture]:
    """Draw all figures that make sense for a model called `own`, beside other models, and from its training log."""
    metric = evaluation.metric
    scores = {own: evaluation.by_layer()} | {name: other.by_layer() for name, other in compared.items()}
    pictures = [
        Picture(
            "trade-off", trade_off(curves, metric), "Quality against cost, by all criteria that this model can use."
        ),
        Picture("layers", by_layer(scores, metric), "What every exit would score if all rows left there."),
    ]
    if compared:
        lines = {own: curves[criterion]}
        for name, other in compared.items():
            early = criterion in other.criteria()
            lines[name if early else f"{name}, no early exit"] = (
                other.curve(criterion) if early else [other.full_depth()]
            )
        caption = f"Models side by side, all by {criterion}; a single dot is a model without early exit."
        pictures.append(Picture("models", trade_off(lines, metric), caption))
    if criterion != "patience":
        pictures.append(Picture("exits", exits_at_speeds(evaluation, criterion), "Where rows leave, at three speeds."))
        caption = "How sure every exit is of all rows. Exits that know more are surer."
        pictures.append(Picture("uncertainty", uncertainty_by_layer(evaluation, criterion), caption))
        if not evaluation.recorded.regression:
            caption = "If uncertainty means something, lines fall from left to right. Large dots hold many rows."
            pictures.append(Picture("luha", lower_uncertainty_higher_accuracy(evaluation, criterion), caption))
    training = convergence(log)
    if training is not None:
        pictures.append(Picture("training", training, "How the training of this model went."))
    return pictures


def trade_off(curves: Mapping[str, Sequence[OperatingPoint]], metric: str) -> Figure:
    """Draw quality against FLOPs, one line a criterion or model; the best points only (upper envelope)."""
    figure, axes = _new(f"{metric} against FLOPs", "FLOPs, share of the plain full-depth model", metric)
    for color, (name, points) in zip(_colors(len(curves)), curves.items(), strict=True):
        best = _envelope(points)
        cost = [1 / point.flops_speedup for point in best]
        axes.plot(cost, [point.quality for point in best], attempts="o", markersize=3, color=color, label=name)
    full = next(iter(curves.values()))[0]
    axes.axhline(full.quality, color="grey", linewidth=1, linestyle="--")
    axes.annotate(
        "full depth", (0.01, full.quality), xycoords=("axes fraction", "data"), va="bottom", color="grey", fontsize=9
    )
    best_quality = max(point.quality for points in curves.values() for point in points)
    axes.set_ylim(
        max(full.quality - 0.12, min(p.quality for ps in curves.values() for p in ps) - 0.01), best_quality + 0.01
    )
    axes.set_xlim(left=0)
    axes.legend(frameon=False, loc="lower right")
    return figure


def by_layer(scores: Mapping[str, Mapping[int, float]], metric: str) -> Figure:
    """Draw the score of every exit when all rows leave there, one line a model (BERxiT, figure 4)."""
    figure, axes = _new(f"{metric} of every exit on all rows", "exit after layer", metric)
    for color, (name, by_exit) in zip(_colors(len(scores)), scores.items(), strict=True):
        axes.plot(list(by_exit), list(by_exit.values()), attempts="o", color=color, label=name)
    axes.set_xticks(sorted({layer for by_exit in scores.values() for layer in by_exit}))
    axes.legend(frameon=False, loc="lower right")
    return figure


def exits_at_speeds(evaluation: Evaluation, name: str) -> Figure:
    """Draw how many rows leave at every exit, at three speeds (FastBERT, figure 5)."""
    figure, axes = _new(f"where rows leave, by {name}", "exit after layer", "share of rows")
    layers = np.array(evaluation.recorded.layers)
    for number, (color, speed) in enumerate(zip(COLORS, SPEEDS, strict=False)):
        point = evaluation.at(Criterion(name=name, speed=speed))
        share = np.array(list(point.exits.values())) / max(sum(point.exits.values()), 1)
        label = f"speed {speed:g}: {point.flops_speedup:.1f}x fewer FLOPs"
        axes.bar(layers + (number - 1) * 0.27, share, width=0.25, color=color, label=label)
    axes.set_xticks(layers)
    axes.legend(frameon=False)
    return figure


def uncertainty_by_layer(evaluation: Evaluation, name: str) -> Figure:
    """Draw how uncertain every exit is over all rows, as a histogram a layer (FastBERT, figure 4)."""
    figure, axes = _new(f"uncertainty ({name}) at every exit, all rows", "uncertainty", "exit after layer")
    seen = evaluation.recorded.uncertainty(Criterion(name=name, speed=0.5))
    layers = evaluation.recorded.layers
    shares = np.array([np.histogram(row, bins=25, range=(0, 1))[0] / max(len(row), 1) for row in seen])
    image = axes.imshow(
        shares, aspect="auto", origin="lower", cmap="viridis", extent=(0, 1, 0.5, len(layers) + 0.5), vmin=0
    )
    axes.set_yticks(range(1, len(layers) + 1), [str(layer) for layer in layers])
    figure.colorbar(image, label="share of rows")
    return figure


def lower_uncertainty_higher_accuracy(evaluation: Evaluation, name: str) -> Figure:
    """Draw the share of right answers by uncertainty, for several layers, over all rows (FastBERT's LUHA, figure 3)."""
    figure, axes = _new("lower uncertainty, higher accuracy?", f"uncertainty ({name})", "share of right answers")
    recorded = evaluation.recorded
    seen = recorded.uncertainty(Criterion(name=name, speed=0.5))
    places = sorted({0, len(recorded.layers) // 3, 2 * len(recorded.layers) // 3, len(recorded.layers) - 1})
    for color, place in zip(COLORS, places, strict=False):
        middle, share, rows = luha(seen[place], recorded.answers[place] == evaluation.targets)
        there = rows > 0
        axes.plot(middle[there], share[there], color=color, label=f"layer {recorded.layers[place]}", zorder=1)
        axes.scatter(
            middle[there], share[there], s=6 + 300 * rows[there] / rows.sum(), color=color, alpha=0.6, zorder=2
        )
    axes.set_xlim(0, 1)
    axes.legend(frameon=False, title="area: rows")
    return figure


def convergence(log: Path) -> Figure | None:
    """Draw loss and dev scores over the rows seen, from a training log; None without one."""
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
    axes.plot([line["step"] for line in steps][window - 1 :], smooth, color="black", label="mean of some steps")
    axes.set_ylim(0, float(np.quantile(loss, 0.99)) * 1.1)
    right = axes.twinx()
    for color, layer in zip(_colors(len(epochs[0]["dev"])), epochs[0]["dev"], strict=True):
        scores = [line["dev"][layer] for line in epochs]
        right.plot([line["step"] for line in epochs], scores, attempts="o", color=color, label=f"dev, exit {layer}")
    right.set_ylabel("dev score")
    handles = [*axes.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=4)
    return figure


def disagreement_curve(curve: Curve, confidence: float) -> Figure:
    """Draw disagreement with full depth against FLOPs along a calibrated path, with what can be promised."""
    figure, axes = _new("what leaving early changes", "FLOPs, share of the plain full-depth model", "other answers, %")
    seen = 100 * np.array(curve.differing) / max(curve.tested, 1)
    bounds = [100 * upper_bound(count, curve.tested, confidence) for count in curve.differing]
    axes.plot(curve.shares, seen, color=COLORS[0], label=f"seen on {curve.tested:,} rows")
    axes.plot(curve.shares[1:], bounds[1:], color=COLORS[1], label=f"upper bound, {confidence:.0%} confidence")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 5 if max(bounds[1:], default=0) > 5 else None)
    axes.legend(frameon=False, loc="upper right")
    return figure


def _envelope(points: Sequence[OperatingPoint]) -> list[OperatingPoint]:
    """Points that no other point beats in both quality and cost, by cost."""
    best: list[OperatingPoint] = []
    for point in sorted(points, key=lambda p: (-p.flops_speedup, -p.quality)):
        if not best or point.quality > best[-1].quality:
            best.append(point)
    return best


def _colors(count: int) -> list[str]:
    return [COLORS[number % len(COLORS)] for number in range(count)]


def _new(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes
