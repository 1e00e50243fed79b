#!/usr/bin/env python
"""Draw the two pictures of how-it-works.md beside it, as SVG: python docs/pictures.py.

The second picture is no sketch: its micro-batches are cut by the engine's own packing.
"""

import sys
from pathlib import Path
from xml.sax.saxutils import escape

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from pipeline.engine.packing import micro_batches, sort_by_length
from pipeline.reports.palette import BLUE, BORDER, GREEN, INK, MUTED, PALE, SKY_BLUE

HERE = Path(__file__).parent
COLORS = {1: "#9fb4c7", 2: SKY_BLUE, 3: GREEN, 4: BLUE}
"""Colors of rows by the layer after which they exit."""
FONT = 'font-family="system-ui, sans-serif"'

STAGES = [
    ("read", "task, CPU", "rows or rejects"),
    ("tokenize", "task, CPU", "ragged token ids"),
    ("classify", "actor, GPU or cores", "model + engine"),
    ("write", "task, CPU", "one part a shard"),
]
"""Name of each stage, where it runs, and what it makes."""
BETWEEN = ["rows", "token ids", "predictions"]
"""What travels from one stage to the next."""

ROWS, BUDGET = 44, 64
"""Rows of the second picture, and tokens in one of its micro-batches."""
SCALE, LEFT = 2.0, 150
"""Pixels a token, and where the micro-batches begin."""


def text(x: float, y: float, words: str, *, size: int = 13, color: str = INK, anchor: str = "start") -> str:
    """Return words as an SVG element; `anchor` is 'start', 'middle' or 'end'."""
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" fill="{color}" text-anchor="{anchor}" {FONT}>{escape(words)}</text>'
    )


def box(x: float, y: float, width: float, height: float, fill: str = PALE, stroke: str = MUTED) -> str:
    """Return a box with round corners."""
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}" stroke="{stroke}"/>'


def block(x: float, y: float, width: float, height: float, fill: str, stroke: str) -> str:
    """Return a box with square corners, as rows and micro-batches have them."""
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}" stroke="{stroke}"/>'


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """Return an arrow from the first point to the second."""
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{INK}" stroke-width="1.5" marker-end="url(#tip)"/>'


def svg(width: int, height: int, parts: list[str], title: str) -> str:
    """Return a whole SVG document on white ground."""
    tip = '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    defs = f'<defs>{tip}<path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"><title>{escape(title)}</title>'
    ground = f'<rect width="{width}" height="{height}" fill="white"/>'
    return "\n".join([head, defs, ground, *parts, "</svg>"]) + "\n"


def data_flow() -> str:
    """Draw the way from input files to results: which stage does what, and what travels between them."""
    parts = [
        box(10, 20, 970, 150, "white", BORDER),
        text(20, 40, "Ray Data: one shard (about 16,000 rows) is one block", color=MUTED),
    ]
    for index, (name, where, what) in enumerate(STAGES):
        x = 140 + index * 185
        parts += [box(x, 62, 130, 84), text(x + 65, 86, name, size=16, anchor="middle")]
        parts.append(text(x + 65, 108, where, size=11, color=MUTED, anchor="middle"))
        parts.append(text(x + 65, 128, what, size=10, color=MUTED, anchor="middle"))
        if index:
            parts.append(arrow(x - 55, 104, x - 4, 104))
            parts.append(text(x - 28, 96, BETWEEN[index - 1], size=10, color=MUTED, anchor="middle"))
    parts += [text(20, 92, "input files", size=14), text(20, 110, "Parquet JSONL", size=11, color=MUTED)]
    parts += [text(20, 125, "CSV TSV text", size=11, color=MUTED), arrow(104, 104, 136, 104)]
    parts += [
        arrow(825, 104, 866, 104),
        text(872, 100, "part-*.parquet", size=12),
        text(872, 118, "_rejects/", size=12),
    ]
    parts += [arrow(760, 146, 760, 196), text(768, 188, "receipts", size=11, color=MUTED)]
    parts += [box(140, 200, 685, 56, "#f7f3e8"), text(155, 224, "driver", size=16)]
    receipts = "one receipt a shard: counts, exits, FLOPs, seconds. No row comes here."
    parts.append(text(155, 244, receipts, size=11, color=MUTED))
    results = "_manifest.json (written last: from then on the results are valid), _report.html, metrics"
    parts += [arrow(482, 256, 482, 284), text(482, 300, results, size=12, anchor="middle")]
    return svg(990, 315, parts, "From input files to results")


def re_packing() -> str:
    """Draw the rows of one call at four layers: which rows exit, and how the others are packed into full micro-batches."""
    random = np.random.default_rng(5)
    lengths = random.integers(3, 15, ROWS)
    exit_layers = random.choice([*COLORS], ROWS, p=[0.45, 0.25, 0.15, 0.15])
    order = sort_by_length(lengths)
    lengths, exit_layers = lengths[order], exit_layers[order]
    heading = (
        f"{ROWS} rows, sorted by length, in micro-batches of {BUDGET} tokens; "
        "a row's color is the layer after which it exits"
    )
    parts = [text(10, 24, heading)]
    for index, (layer, color) in enumerate(COLORS.items()):
        parts.append(f'<rect x="{10 + index * 90}" y="36" width="12" height="12" fill="{color}"/>')
        parts.append(text(27 + index * 90, 47, f"layer {layer}", size=12))
    y = 66.0
    for layer in COLORS:
        active = exit_layers >= layer
        batches = micro_batch_rows(lengths[active], exit_layers[active], y)
        parts.append(text(10, y + 18, f"layer {layer}", size=14))
        parts.append(text(10, y + 34, f"{active.sum()} rows, {lengths[active].sum()} tokens", size=10, color=MUTED))
        parts += [part for batch in batches for part in batch]
        y += 34 * (-(-len(batches) // 5)) + 14
    remark = "Without re-packing every layer would run as many batches as the first, ever emptier."
    parts.append(text(10, y + 6, remark, size=12, color=MUTED))
    return svg(880, int(y) + 20, parts, "The rows that do not exit are packed into full micro-batches")


def micro_batch_rows(lengths: np.ndarray, exit_layers: np.ndarray, y: float) -> list[list[str]]:
    """Return the parts of every micro-batch at one layer, five to a line: its frame, and its rows in their colors."""
    batches = []
    for number, batch in enumerate(micro_batches(lengths, BUDGET)):
        x, top = LEFT + (number % 5) * (BUDGET * SCALE + 14), y + (number // 5) * 34
        parts = [block(x, top, BUDGET * SCALE, 24, PALE, "#c9d1d9")]
        for row in range(batch.row_start, batch.row_stop):
            width = lengths[row] * SCALE
            parts.append(block(round(x, 1), top, round(width, 1), 24, COLORS[int(exit_layers[row])], "white"))
            x += width
        batches.append(parts)
    return batches


if __name__ == "__main__":
    (HERE / "data-flow.svg").write_text(data_flow(), encoding="utf-8")
    (HERE / "re-packing.svg").write_text(re_packing(), encoding="utf-8")
