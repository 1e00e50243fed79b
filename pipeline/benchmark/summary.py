"""What a benchmark reports: a card before it starts, a table of rates, and one JSON document with the ratios.

The ratio that matters is `wall_over_flops`: the speed-up of early exit in time, over its speed-up in layers (depth over mean
exit layer). At 1 the engine turns every layer saved into time saved.
"""

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch

from models.early_exit import EarlyExitModel
from pipeline.benchmark.device_use import DeviceUse
from pipeline.benchmark.measure import System, Timing
from pipeline.benchmark.systems import EARLY, FULL
from pipeline.benchmark.workload import Workload
from pipeline.engine.engine import Engine


def summarize(
    timings: Mapping[str, Timing], systems: Mapping[str, System], model: EarlyExitModel, ceiling: float
) -> dict[str, Any]:
    """Return the JSON document: rates by system, the workload, and the ratios.

    `ceiling` is in FLOPs a second. The ratios with `all_tokens` are there if the model can run with first-token-first and
    without.
    """
    rates = {name: len(systems[name].work.rows) / timing.median for name, timing in timings.items()}
    work, plain = systems[EARLY].work, f"{FULL}, all tokens"
    whole = plain if plain in rates else FULL
    flops = model.flops.full_depth(work.rows.lengths).sum() / timings[whole].median
    layers = model.shape.layers / work.mean_exit
    wall = rates[EARLY] / rates[FULL]
    result: dict[str, Any] = {
        "rows_per_s": {name: round(rate, 2) for name, rate in rates.items()},
        "spread": {name: round(timing.spread, 3) for name, timing in timings.items()},
        "mean_tokens": round(float(work.rows.lengths.mean()), 1),
        "mean_exit": round(work.mean_exit, 3),
        "flops_speedup": round(layers, 3),
        "wall_speedup": round(wall, 3),
        "wall_over_flops": round(wall / layers, 3),
        "ceiling_tflops": round(ceiling / 1e12, 3),
        "ceiling_fraction": round(flops / ceiling, 3),
        "versions": {name: version(name) for name in ("torch", "transformers")} | {"python": platform.python_version()},
    }
    if whole == plain:
        early_plain = rates.get(f"{EARLY}, all tokens", rates[EARLY])
        result["wall_over_flops_all_tokens"] = round(early_plain / rates[plain] / layers, 3)
        result["wall_over_flops_against_all_tokens"] = round(rates[EARLY] / rates[plain] / layers, 3)
    return result


def summarize_use(timings: Mapping[str, Timing], use: Mapping[str, DeviceUse]) -> dict[str, Any]:
    """Return what systems kept a GPU busy with, by name: the fraction of their median time, and the number of kernels."""
    return {name: {"busy": round(of.busy(timings[name].median), 3), "kernels": of.kernels} for name, of in use.items()}


def card(name: str, engine: Engine, work: Workload, ceiling: float, notes: Sequence[str]) -> str:
    """Return what is about to be measured, in a few lines: model, rows, machine and settings, and the machine's ceiling.

    `notes` are on the peers that are left out.
    """
    lengths, shape, loaded = work.rows.lengths, engine.model.shape, engine.loaded
    machine = f"{os.cpu_count()} cores, {platform.machine()}"
    if engine.loaded.device.type == "cuda":
        machine = torch.cuda.get_device_name()
    lines = [
        f"{name}: {shape.layers} layers of {shape.hidden}, {engine.model.branch_head} heads",
        f"{len(lengths):,} rows of {lengths.mean():.1f} tokens; mean exit {work.mean_exit:.2f} of {shape.layers}",
        f"{machine}; {loaded.precision}, {loaded.threads} threads, {loaded.token_budget} tokens in a micro-batch",
        f"matrix products of this model alone reach {ceiling / 1e12:.2f} TFLOP/s",
        *(f"left out: {note}" for note in notes),
    ]
    return "\n".join(lines)


def table(timings: Mapping[str, Timing], result: Mapping[str, Any]) -> str:
    """Return a Markdown table of the systems' rates, and below it the figures of the document that are single numbers.

    Where the document has the use of a GPU, the table has columns for it.
    """
    rates, use = result["rows_per_s"], result.get("device_use")
    header = ["system", "rows/s", "against full depth", "slowest / fastest round"]
    lines = [header + ["GPU busy", "kernels"] * bool(use)]
    lines.append(["---"] * len(lines[0]))
    for name, rate in rates.items():
        cells = [name, f"{rate:,.1f}", f"{rate / rates[FULL]:.2f}", f"{timings[name].spread:.2f}"]
        if use:
            cells += [f"{use[name]['busy']:.2f}", f"{use[name]['kernels']:,}"] if name in use else ["", ""]
        lines.append(cells)
    rows = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([*rows, "", *(f"{key}: {value}" for key, value in result.items() if isinstance(value, float))])
