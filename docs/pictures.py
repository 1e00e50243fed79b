#!/usr/bin/env python
"""Draw the pictures of how-it-works.md: python docs/pictures.py. The second one is cut by the engine's own packing."""

import sys
from pathlib import Path
from xml.sax.saxutils import escape

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from pipeline.engine.packing import micro_batches, sort_by_length

HERE = Path(__file__).parent
INK, SOFT, PALE = "#1c2430", "#5b6573", "#eef2f6"
COLORS = {1: "#9fb4c7", 2: "#56b4e9", 3: "#009e73", 4: "#0072b2"}
"""Rows by the layer after which they leave."""
FONT = 'font-family="system-ui, sans-serif"'


def text(x: float, y: float, words: str, *, size: int = 13, color: str = INK, anchor: str = "start") -> str:
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" fill="{color}" text-anchor="{anchor}" {FONT}>{escape(words)}</text>'
    )


def box(x: float, y: float, width: float, height: float, fill: str = PALE, stroke: str = SOFT) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}" stroke="{stroke}"/>'


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{INK}" stroke-width="1.5" marker-end="url(#tip)"/>'


def svg(width: int, height: int, parts: list[str], title: str) -> str:
    tip = '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    defs = f'<defs>{tip}<path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"><title>{escape(title)}</title>'
    ground = f'<rect width="{width}" height="{height}" fill="white"/>'
    return "\n".join([head, defs, ground, *parts, "</svg>"]) + "\n"


def data_flow() -> str:
    """Files to results: who does what, and what travels between."""
    parts = [
        box(10, 20, 970, 150, "white", "#dfe3e8"),
        text(20, 40, "Ray Data: one shard (about 16,000 rows) is one block", color=SOFT),
    ]
    stages = [
        ("read", "task, CPU", "rows or rejects"),
        ("tokenize", "task, CPU", "ragged token ids"),
        ("classify", "actor, GPU or cores", "model + engine"),
        ("write", "task, CPU", "one part a shard"),
    ]
    between = ["rows", "token ids", "predictions"]
    for place, (name, where, what) in enumerate(stages):
        x = 140 + place * 185
        parts += [box(x, 62, 130, 84), text(x + 65, 86, name, size=16, anchor="middle")]
        parts += [text(x + 65, 108, where, size=11, color=SOFT, anchor="middle")]
        parts += [text(x + 65, 128, what, size=10, color=SOFT, anchor="middle")]
        if place:
            parts += [
                arrow(x - 55, 104, x - 4, 104),
                text(x - 28, 96, between[place - 1], size=10, color=SOFT, anchor="middle"),
            ]
    parts += [text(20, 92, "input files", size=14), text(20, 110, "Parquet JSONL", size=11, color=SOFT)]
    parts += [text(20, 125, "CSV TSV text", size=11, color=SOFT), arrow(104, 104, 136, 104)]
    parts += [
        arrow(825, 104, 866, 104),
        text(872, 100, "part-*.parquet", size=12),
        text(872, 118, "_rejects/", size=12),
    ]
    parts += [arrow(760, 146, 760, 196), text(768, 188, "receipts", size=11, color=SOFT)]
    parts += [box(140, 200, 685, 56, "#f7f3e8"), text(155, 224, "driver", size=16)]
    parts += [
        text(155, 244, "one receipt a shard: counts, exits, FLOPs, seconds. No row comes here.", size=11, color=SOFT)
    ]
    parts += [
        arrow(482, 256, 482, 284),
        text(
            482,
            300,
            "_manifest.json (written last: from then on the results are valid), _report.html, metrics",
            size=12,
            anchor="middle",
        ),
    ]
    return svg(990, 315, parts, "From input files to results")


def re_packing() -> str:
    """Rows of one call through four layers: who leaves, and how the others are cut into full micro-batches anew."""
    random = np.random.default_rng(5)
    lengths = random.integers(3, 15, 44)
    leaves = random.choice([1, 2, 3, 4], 44, p=[0.45, 0.25, 0.15, 0.15])
    order = sort_by_length(lengths)
    lengths, leaves = lengths[order], leaves[order]
    budget, scale, left = 64, 2.0, 150
    parts = [
        text(
            10,
            24,
            "44 rows, sorted by length, in micro-batches of 64 tokens; a row's color is the layer after which it leaves",
            size=13,
        )
    ]
    for number, color in COLORS.items():
        parts += [
            f'<rect x="{10 + (number - 1) * 90}" y="36" width="12" height="12" fill="{color}"/>',
            text(27 + (number - 1) * 90, 47, f"layer {number}", size=12),
        ]
    y = 66.0
    for layer in COLORS:
        active = leaves >= layer
        here, ends = lengths[active], leaves[active]
        batches = list(micro_batches(here, budget))
        parts.append(text(10, y + 18, f"layer {layer}", size=14))
        parts.append(text(10, y + 34, f"{len(here)} rows, {int(here.sum())} tokens", size=10, color=SOFT))
        for number, batch in enumerate(batches):
            x0 = left + (number % 5) * (budget * scale + 14)
            y0 = y + (number // 5) * 34
            parts.append(
                f'<rect x="{x0}" y="{y0}" width="{budget * scale}" height="24" fill="{PALE}" stroke="#c9d1d9"/>'
            )
            x = x0
            for row in range(batch.row_start, batch.row_stop):
                width, fill = here[row] * scale, COLORS[int(ends[row])]
                parts.append(
                    f'<rect x="{x:.1f}" y="{y0}" width="{width:.1f}" height="24" fill="{fill}" stroke="white"/>'
                )
                x += width
        y += 34 * (-(-len(batches) // 5)) + 14
    parts.append(
        text(
            10,
            y + 6,
            "Without re-packing every layer would run as many batches as the first, ever emptier.",
            size=12,
            color=SOFT,
        )
    )
    return svg(880, int(y) + 20, parts, "Survivors of an exit are packed into full micro-batches")


if __name__ == "__main__":
    (HERE / "data-flow.svg").write_text(data_flow(), encoding="utf-8")
    (HERE / "re-packing.svg").write_text(re_packing(), encoding="utf-8")
