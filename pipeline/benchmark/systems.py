"""The engine as a benchmark compares it: at full depth, with early exit, and variants of both."""

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.benchmark.measure import System
from pipeline.benchmark.shapes import exits_every
from pipeline.benchmark.workload import Workload
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.rows import TokenRows

FULL, EARLY = "full-depth", "early-exit"
"""The names of the two systems whose ratio is the result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variants:
    """Settings of the engine to compare: the first of each list is the engine's own, the others are variants."""

    dtypes: Sequence[str]
    """Precisions of the matrices."""
    token_budgets: Sequence[int | None]
    """Tokens in a micro-batch; None leaves the choice to the engine."""
    exit_blocks: Sequence[int]
    """Layers between two exits."""
    rows_per_call: Sequence[int] = ()
    """Numbers of rows in a call, beside all rows in one."""

    def config(self, model: EarlyExitModel, speed: float) -> EngineConfig:
        """Return the engine's own settings, with a threshold on the entropy."""
        return EngineConfig(
            criterion=Criterion(speed=speed),
            token_budget=self.token_budgets[0],
            exits=exits_every(model, self.exit_blocks[0]),
            dtype=self.dtypes[0],
        )


def make_engine(model: EarlyExitModel, config: EngineConfig, device: str) -> Engine:
    """Return an engine with weights of its own, since an engine changes their precision."""
    return Engine(LoadedModel(copy.deepcopy(model), config, device))


def plan_exits(engine: Engine, rows: TokenRows) -> Workload:
    """Return the rows with the exits that the engine takes for them, as the plan of every early-exit system."""
    return Workload(rows=rows, exit_plan=engine.run(rows).exit_layers.astype(np.int64))


def engine_systems(engine: Engine, model: EarlyExitModel, work: Workload, variants: Variants) -> dict[str, System]:
    """Return full depth and early exit, both also for all tokens in place of first-token-first, and the variants.

    Engines of the same precision and token budget share a loaded model, and so the memory for hidden states, of which a GPU
    would hold one for each system otherwise.
    """
    config = engine.config
    loaded = {(config.dtype, config.token_budget): engine.loaded}

    def variant(changes: Mapping[str, Any]) -> Engine:
        changed = replace(config, **changes)
        key = (changed.dtype, changed.token_budget)
        if key not in loaded:
            loaded[key] = make_engine(model, changed, engine.loaded.device.type).loaded
        return Engine(loaded[key], changed)

    def early(**changes: Any) -> System:
        return _planned(variant(changes), work)

    def full(**changes: Any) -> System:
        return _at_full_depth(variant({"criterion": Criterion(), **changes}), work)

    systems = {FULL: full(), EARLY: _planned(engine, work)}
    if model.branch_head == "pooled":
        systems[f"{EARLY}, all tokens"] = early(first_token_first=False)
    if model.last_head == "classifier":
        systems[f"{FULL}, all tokens"] = full(first_token_first=False)
    for dtype in variants.dtypes[1:]:
        systems[f"{FULL}, {dtype}"] = full(dtype=dtype)
        systems[f"{EARLY}, {dtype}"] = early(dtype=dtype)
    for budget, block in list(itertools.product(variants.token_budgets, variants.exit_blocks))[1:]:
        name = f"{EARLY}, token budget {budget or engine.loaded.token_budget}, exit every {block}"
        systems[name] = early(token_budget=budget, exits=exits_every(model, block))
    for count in variants.rows_per_call:
        run = partial(_run_calls, engine, work.in_calls_of(count))
        systems[f"{EARLY}, {count:,} rows a call"] = System(run=run, work=work)
    return systems


def _planned(engine: Engine, work: Workload) -> System:
    """Return a system in which rows exit by the plan of the workload."""
    return System(run=lambda work: engine.run(work.rows, work.rule), work=work)


def _at_full_depth(engine: Engine, work: Workload) -> System:
    """Return a system in which rows go by the engine's criterion, which is full depth."""
    return System(run=lambda work: engine.run(work.rows), work=work)


def _run_calls(engine: Engine, calls: Sequence[Workload], _whole: Workload) -> None:
    """Classify the rows in calls, one after the other."""
    for call in calls:
        engine.run(call.rows, call.rule)
