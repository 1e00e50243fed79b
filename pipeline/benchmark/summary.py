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


def card(name: str, engine: Engine, work: Workload, ceiling: float, missing: Sequence[str]) -> str:
    """Return what is about to be measured, in a few lines: model, rows, machine and settings, and the machine's ceiling."""
    lengths, shape, loaded = work.rows.lengths, engine.model.shape, engine.loaded
    machine = f"{os.cpu_count()} cores, {platform.machine()}"
    if engine.loaded.device.type == "cuda":
        machine = torch.cuda.get_device_name()
    lines = [
        f"{name}: {shape.layers} layers of {shape.hidden}, {engine.model.branch_head} heads",
        f"{len(lengths):,} rows of {lengths.mean():.1f} tokens; mean exit {work.mean_exit:.2f} of {shape.layers}",
        f"{machine}; {loaded.precision}, {loaded.threads} threads, {loaded.token_budget} tokens in a micro-batch",
        f"matrix products of this model alone reach {ceiling / 1e12:.2f} TFLOP/s",
    ]
    if missing:
        lines.append(f"missing: {', '.join(missing)}; or all of them: pip install 'offramp[bench]'")
    return "\n".join(lines)


def table(timings: Mapping[str, Timing], result: Mapping[str, Any]) -> str:
    """Return a Markdown table of the systems' rates, and below it the figures of the document that are single numbers."""
    rates = result["rows_per_s"]
    lines = ["| system | rows/s | against full depth | slowest / fastest round |", "| --- | --- | --- | --- |"]
    for name, rate in rates.items():
        lines.append(f"| {name} | {rate:,.1f} | {rate / rates[FULL]:.2f} | {timings[name].spread:.2f} |")
    return "\n".join([*lines, "", *(f"{key}: {value}" for key, value in result.items() if isinstance(value, float))])
