"""The engine's systems run what their names say, and share loaded models where they can."""

import numpy as np
import pytest

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.benchmark import systems
from pipeline.benchmark.workload import Workload
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from tests.support.models import random_rows


def test_systems_share_a_model_for_each_precision_and_token_budget(
    exit_model: EarlyExitModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[LoadedModel] = []
    runs: list[tuple[LoadedModel, Criterion, bool, int]] = []

    class Counted(LoadedModel):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)  # type: ignore[arg-type]
            loads.append(self)

    class Noted(Engine):
        def run(self, rows, rule=None):  # type: ignore[no-untyped-def]
            runs.append((self.loaded, self.config.criterion, self.config.first_token_first, len(rows)))
            return super().run(rows, rule)

    monkeypatch.setattr(systems, "LoadedModel", Counted)
    monkeypatch.setattr(systems, "Engine", Noted)
    rows = random_rows(30, 20, seed=1)
    work = Workload(rows=rows, exit_plan=np.ones(30, np.int64))
    variants = systems.Variants(dtypes=["fp32", "bf16"], token_budgets=[256, 128], exit_blocks=[1], rows_per_call=[20])
    engine = systems.make_engine(exit_model, variants.config(exit_model, speed=0.5), "cpu")
    made = systems.engine_systems(engine, exit_model, work, variants)
    for system in made.values():
        system.run(system.work)
    assert [(loaded.precision, loaded.token_budget) for loaded in loads] == [
        ("fp32", 256),
        ("bf16", 256),
        ("fp32", 128),
    ]
    by_name = dict(zip([*made, "the second call"], runs, strict=True))
    own, other, small = loads
    early = Criterion(speed=0.5)
    assert by_name["full-depth"] == (own, Criterion(), True, 30)
    assert by_name["early-exit"] == (own, early, True, 30)
    assert by_name["full-depth, all tokens"] == (own, Criterion(), False, 30)
    assert by_name["full-depth, bf16"] == (other, Criterion(), True, 30)
    assert by_name["early-exit, bf16"] == (other, early, True, 30)
    assert by_name["early-exit, token budget 128, exit every 1"] == (small, early, True, 30)
    assert by_name["early-exit, 20 rows a call"] == (own, early, True, 20)
    assert by_name["the second call"] == (own, early, True, 10)
    if exit_model.branch_head == "pooled":
        assert by_name["early-exit, all tokens"] == (own, early, False, 30)
