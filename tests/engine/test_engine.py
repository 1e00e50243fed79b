"""The re-packing engine against an oracle that runs one row at a time and never re-packs."""

import copy
import math
import os
import signal
import time
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.backbone import PackedTokens
from models.early_exit import EarlyExitModel
from models.exits.criterion import CRITERIA, Criterion
from models.length_group import LengthGroup
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.rows import TokenRows
from tests.support.engines import EngineOfGpuRunners
from tests.support.models import (
    TOLERANCE,
    new_model,
    random_rows,
    regression_model,
)

MODELS = {kind: new_model(kind) for kind in ("pooled", "attention")} | {"regression": regression_model()}


def oracle(
    model: EarlyExitModel, rows: TokenRows, criterion: Criterion, exits: Collection[int]
) -> list[tuple[int, np.ndarray, float, float]]:
    """Exit layer, logits, uncertainty, and the distance of the closest decision to the threshold, row by row."""
    outcomes = []
    layers = model.shape.layers
    for row in range(len(rows)):
        ids = torch.from_numpy(rows.token_ids[rows.offsets[row] : rows.offsets[row + 1]].astype(np.int64))
        groups = (LengthGroup(1, len(ids)),)
        segments = torch.tensor([int(rows.segments[row])])
        with torch.inference_mode():
            by_layer = model(PackedTokens(token_ids=ids, segments=segments, groups=groups))
        margin, streak, before = 1.0, 0, None
        for layer in [n for n in range(1, layers + 1) if n in exits or n == layers]:
            logits, speed = by_layer[layer].logits[0].numpy(), criterion.speed_at(layer)
            p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            doubt = 0.0 if len(p) == 1 else float(-(p * np.log(p)).sum() / np.log(len(p)))
            closest, exits_here = abs(doubt - speed), speed > 0 and doubt <= speed
            if criterion.name == "confidence":
                doubt = 1 - p.max()
                closest, exits_here = abs(doubt - speed), speed > 0 and doubt <= speed
            elif criterion.name == "lte" and layer < layers:
                doubt = 1 - 1 / (1 + math.exp(-float(by_layer[layer].lte[0])))
                closest, exits_here = abs(doubt - speed), speed > 0 and doubt <= speed
            elif criterion.name == "patience":
                closest = 1.0 if len(p) == 1 else float(np.diff(np.sort(logits)[-2:])[0])
                if before is not None and len(p) == 1:
                    change = abs(logits[0] - before[0])
                    closest, streak = (
                        abs(change - criterion.tolerance),
                        streak + 1 if change < criterion.tolerance else 0,
                    )
                elif before is not None:
                    streak = streak + 1 if logits.argmax() == before.argmax() else 0
                before, doubt = logits, max(0.0, 1 - streak / criterion.patience)
                exits_here = streak >= criterion.patience
            if layer < layers or criterion.name == "patience":
                margin = min(margin, closest)
            if layer == layers or exits_here:
                outcomes.append((layer, logits, doubt, margin))
                break
    return outcomes


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    name=st.sampled_from(CRITERIA),
    speed=st.floats(0.01, 0.99),
    speeds=st.dictionaries(st.integers(1, 4), st.floats(0, 0.99)),
    patience=st.integers(1, 3),
    token_budget=st.integers(1, 300),
    resident_tokens=st.integers(1, 2000),
    exits=st.sets(st.integers(1, 4)),
    kind=st.sampled_from(["pooled", "attention", "regression"]),
    first=st.booleans(),
    seed=st.integers(0, 3),
)
@settings(max_examples=80)
@pytest.mark.parametrize("engine", [Engine, EngineOfGpuRunners])
def test_repacked_rows_equal_one_row_at_a_time(
    engine: type[Engine],
    lengths: list[int],
    name: str,
    speed: float,
    speeds: dict[int, float],
    patience: int,
    token_budget: int,
    resident_tokens: int,
    exits: set[int],
    kind: str,
    first: bool,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    rows = TokenRows.from_lists([random.integers(0, 200, n).tolist() for n in lengths])
    if kind == "regression":
        name = {"entropy": "lte", "confidence": "patience"}.get(name, name)
    own = () if name == "patience" else tuple(speeds.items())
    criterion = Criterion(name=name, speed=speed, speeds=own, patience=patience, tolerance=speed)
    config = EngineConfig(
        criterion=criterion,
        token_budget=token_budget,
        resident_tokens=resident_tokens,
        exits=tuple(exits),
        first_token_first=first,
        dtype="fp32",
    )
    got = engine(LoadedModel(MODELS[kind], config)).run(rows)
    for row, (layer, logits, uncertainty, margin) in enumerate(oracle(MODELS[kind], rows, criterion, exits)):
        if margin > TOLERANCE:
            assert got.exit_layers[row] == layer
            np.testing.assert_allclose(got.logits[row], logits, atol=TOLERANCE, rtol=1e-3)
            assert got.uncertainty[row] == pytest.approx(uncertainty, abs=TOLERANCE)


@pytest.mark.parametrize("name", CRITERIA)
def test_the_oracle_test_judges_nearly_all_rows_and_meets_every_exit(name: str) -> None:
    rows = random_rows(100, 60, seed=5)
    wanted = [Criterion(name=name, speed=n / 10, patience=n % 3 + 1) for n in range(1, 10)]
    outcomes = [row for criterion in wanted for row in oracle(MODELS["pooled"], rows, criterion, range(5))]
    assert sum(margin > TOLERANCE for *_, margin in outcomes) >= 885
    assert len({layer for layer, *_ in outcomes}) >= 3


def test_at_speed_one_every_row_takes_the_first_exit(exit_model: EarlyExitModel) -> None:
    got = Engine(
        LoadedModel(exit_model, EngineConfig(criterion=Criterion(speed=1.0), dtype="fp32", token_budget=64))
    ).run(random_rows(50, 40, seed=3))
    assert set(got.exit_layers) == {1}


def test_engines_of_one_loaded_model_predict_as_engines_of_their_own(exit_model: EarlyExitModel) -> None:
    rows, fast = random_rows(100, 40, seed=1), Criterion(name="confidence", speed=0.5)
    own = Engine(LoadedModel(copy.deepcopy(exit_model), EngineConfig(criterion=fast, dtype="bf16"))).run(rows)
    engine = Engine(LoadedModel(exit_model, EngineConfig(dtype="bf16")))
    other = engine.with_criterion(fast).run(rows)
    assert set(engine.run(rows).exit_layers) == {4}
    np.testing.assert_array_equal(other.exit_layers, own.exit_layers)
    np.testing.assert_array_equal(other.logits, own.logits)


def test_at_speed_zero_every_row_goes_to_full_depth(exit_model: EarlyExitModel) -> None:
    rows = random_rows(50, 40, seed=3)
    got = Engine(
        LoadedModel(exit_model, EngineConfig(criterion=Criterion(speed=0.0), dtype="fp32", token_budget=64))
    ).run(rows)
    assert set(got.exit_layers) == {4}
    assert got.layer_tokens == 4 * len(rows.token_ids)


def test_exits_without_a_threshold_of_their_own_are_not_evaluated(exit_model: EarlyExitModel) -> None:
    rows = random_rows(50, 40, seed=3)
    engine = Engine(
        LoadedModel(exit_model, EngineConfig(criterion=Criterion(speeds=((2, 1.0), (3, 0.0))), dtype="fp32"))
    )
    assert set(engine.run(rows).exit_layers) == {2}
    assert set(engine.flops.exit_heads) == {2, 4}
    with pytest.raises(ValueError, match="no exit after layer 5"):
        Engine(LoadedModel(exit_model, EngineConfig(criterion=Criterion(speeds=((5, 1.0),)))))


def test_thresholds_by_layer_survive_the_model_directory_and_are_distinguished(
    exit_model: EarlyExitModel, tmp_path: Path
) -> None:
    exit_model.criterion = Criterion(speed=0.4, speeds=((3, 0.25), (1, 0.125), (2, 0.0)))
    exit_model.save_pretrained(tmp_path)
    stored = EarlyExitModel.from_pretrained(tmp_path).criterion
    assert stored == exit_model.criterion
    assert stored is not None
    assert (stored.describe(), stored.speed) == ("entropy 1:0.125 3:0.25", 0.0)
    assert Criterion(speeds=((1, 0.0),), speed=0.4).full_depth
    for wrong in (((1, 1.5),), ((1, 0.1), (1, 0.2))):
        with pytest.raises(ValueError, match="speed"):
            Criterion(speeds=wrong)


def test_a_uniform_distribution_exits_at_speed_one_only() -> None:
    model = new_model()
    for parameter in model.exits.parameters():
        torch.nn.init.zeros_(parameter)
    rows = random_rows(5, 9, seed=0)
    assert set(
        Engine(LoadedModel(model, EngineConfig(criterion=Criterion(speed=1.0), dtype="fp32"))).run(rows).exit_layers
    ) == {1}
    assert set(
        Engine(LoadedModel(model, EngineConfig(criterion=Criterion(speed=0.99), dtype="fp32"))).run(rows).exit_layers
    ) == {4}


def test_rows_keep_their_order_and_calls_keep_no_state(exit_model: EarlyExitModel) -> None:
    engine = Engine(
        LoadedModel(exit_model, EngineConfig(criterion=Criterion(speed=0.4), dtype="fp32", token_budget=100))
    )
    rows = random_rows(64, 50, seed=7)
    first = engine.run(rows)
    shuffle = np.random.default_rng(0).permutation(len(rows))
    engine.run(random_rows(10, 20, seed=8))
    np.testing.assert_array_equal(first.probabilities, engine.run(rows).probabilities)
    shuffled = engine.run(rows.take(shuffle))
    np.testing.assert_allclose(shuffled.probabilities, first.probabilities[shuffle], atol=TOLERANCE)
    assert len(set(first.exit_layers)) > 1


def test_no_rows_give_no_predictions(exit_model: EarlyExitModel) -> None:
    got = Engine(LoadedModel(exit_model, EngineConfig(criterion=Criterion(speed=0.4)))).run(TokenRows.from_lists([]))
    assert len(got.exit_layers) == len(got.label_ids) == 0


def test_bf16_gives_nearly_the_same_labels(exit_model: EarlyExitModel) -> None:
    rows = random_rows(300, 40, seed=11)
    fp32 = (
        Engine(LoadedModel(exit_model, EngineConfig(criterion=Criterion(speed=0.0), dtype="fp32"))).run(rows).label_ids
    )
    bf16 = (
        Engine(LoadedModel(exit_model, EngineConfig(criterion=Criterion(speed=0.0), dtype="bf16"))).run(rows).label_ids
    )
    assert (fp32 == bf16).mean() > 0.95


@pytest.mark.parametrize("of_runners", [Engine, EngineOfGpuRunners])
def test_an_interrupted_call_ends_soon_and_leaves_idle_runners(
    of_runners: type[Engine], exit_model: EarlyExitModel
) -> None:
    engine = of_runners(LoadedModel(exit_model, EngineConfig(dtype="fp32", token_budget=64)))
    rows = random_rows(2000, 40, seed=7)
    expected = engine.run(rows)
    first, calls = exit_model.backbone.layer(1), 0

    def interrupt(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)

    hook = first.query_key_value.register_forward_pre_hook(interrupt)
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell ignores it for what it starts in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            engine.run(rows)
    finally:
        signal.signal(signal.SIGINT, before)
    seen = calls
    time.sleep(0.05)  # a runner that is still at work goes on to the next micro-batch
    assert calls == seen < len(rows.token_ids) // 64
    hook.remove()
    np.testing.assert_array_equal(engine.run(rows).probabilities, expected.probabilities)


def test_an_exit_that_the_model_lacks_is_named(exit_model: EarlyExitModel) -> None:
    with pytest.raises(ValueError, match="no exit after layer 9; it has them after 1 2 3 4"):
        Engine(LoadedModel(exit_model, EngineConfig(criterion=Criterion(speed=0.5), exits=(2, 9))))


@pytest.mark.parametrize(
    ("field", "value"), [("speed", 1.5), ("speed", -0.1), ("patience", 0), ("token_budget", 0), ("dtype", "fp8")]
)
def test_a_setting_out_of_range_is_named(field: str, value: object) -> None:
    config: type = Criterion if field in ("speed", "patience", "name") else EngineConfig
    with pytest.raises(ValueError, match=field):
        config(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([5, 200], "token id 200 is not in the model's vocabulary of 200"),
        ([-1], "token id -1 is not"),
        ([5] * 71, "a row of 71 tokens is longer than the model takes: 70"),
    ],
)
def test_rows_that_no_table_has_an_entry_for_are_refused(
    row: list[int], words: str, exit_model: EarlyExitModel
) -> None:
    engine = Engine(LoadedModel(copy.deepcopy(exit_model), EngineConfig()))
    with pytest.raises(ValueError, match=words):
        engine.run(TokenRows.from_lists([[1, 2], row]))
    assert len(engine.run(TokenRows.from_lists([[199] * 70])).exit_layers) == 1
