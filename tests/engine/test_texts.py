"""Texts of several windows: a slow oracle runs one window at a time and combines in plain numpy."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.engine.texts.combine import combine
from pipeline.engine.texts.engine import TextEngine
from pipeline.engine.texts.rows import TextPredictions, TextRows
from pipeline.errors import InputError
from pipeline.rows import Predictions
from pipeline.windows import COMBINATIONS, LongTexts
from tests.support.models import (
    TAGS,
    TOLERANCE,
    label_set_classifier,
    new_model,
    random_exits,
    random_rows,
    regression_model,
)

BOUNDARIES = (0.0, 0.5, -0.5)
KINDS = ("classes", "labels", "value")


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64) - logits.max())
    return powers / powers.sum()


def oracle(how: str, kind: str, logits: np.ndarray, uncertainty: np.ndarray) -> tuple[np.ndarray, float]:
    """Combine the windows of one text; return its probabilities, or its value, and its uncertainty."""
    rows = logits if kind == "value" else 1 / (1 + np.exp(-logits.astype(np.float64)))
    if kind == "classes":
        rows = np.array([softmax(row) for row in logits])
    if how == "first-certain":
        return rows[int(uncertainty.argmin())], uncertainty.min()
    if how == "mean":
        return rows.mean(0), uncertainty.mean()
    if kind == "labels":
        return rows.max(0), uncertainty.max()
    best = int(rows.max(1).argmax())
    assert rows[best].max() == rows.max()
    return rows[best], uncertainty[best]


def windows_of(kind: str, logits: np.ndarray, uncertainty: np.ndarray, layers: np.ndarray) -> Predictions:
    return Predictions(
        logits=logits[:, :1] if kind == "value" else logits,
        boundaries=BOUNDARIES if kind == "labels" else None,
        exit_layers=layers,
        uncertainty=uncertainty,
        layer_tokens=7,
        padding_tokens=3,
    )


@given(
    st.lists(st.integers(1, 5), max_size=8), st.integers(0, 1000), st.sampled_from(COMBINATIONS), st.sampled_from(KINDS)
)
def test_a_text_has_what_its_windows_make_of_it(counts: list[int], seed: int, how: str, kind: str) -> None:
    random, total = np.random.default_rng(seed), sum(counts)
    logits = random.normal(scale=3, size=(total, 3)).astype(np.float32)
    uncertainty, layers = random.random(total).astype(np.float32), random.integers(1, 7, total).astype(np.int16)
    windows = windows_of(kind, logits, uncertainty, layers)
    made = combine(how, windows, np.array(counts, np.int64))
    assert (made.layer_tokens, made.padding_tokens) == (7, 3)
    assert made.logits.shape == (len(counts), windows.logits.shape[1])
    bounds = np.cumsum([0, *counts])
    for text, (start, end) in enumerate(pairwise(bounds)):
        wanted, uncertain = oracle(how, kind, windows.logits[start:end], uncertainty[start:end])
        got = made.logits[text] if kind == "value" else made.probabilities[text]
        np.testing.assert_allclose(got, wanted, atol=2e-6, rtol=2e-6)
        assert made.uncertainty[text] == pytest.approx(uncertain, abs=1e-6)
        assert made.exit_layers[text] == layers[start:end].max()
        if end == start + 1:
            np.testing.assert_array_equal(made.logits[text], windows.logits[start])
        if kind == "classes" and np.sort(wanted)[-1] - np.sort(wanted)[-2] > 1e-5:
            assert made.label_ids[text] == wanted.argmax()
        if kind == "labels":
            near = np.abs(np.log(wanted / (1 - wanted)) - BOUNDARIES) < 1e-4
            np.testing.assert_array_equal(made.label_sets[text][~near], (made.logits[text] > BOUNDARIES)[~near])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", COMBINATIONS)
def test_extremes_stay_finite_and_a_window_without_numbers_spoils_its_text_alone(how: str, kind: str) -> None:
    logits = np.full((6, 3), 200, np.float32) * np.array([1, -1, -1], np.float32)
    logits[4, 1] = np.nan
    uncertainty = np.array([0, 0, 0.5, 0.5, np.nan, 0.1], np.float32)
    windows = windows_of("classes" if kind == "value" else kind, logits, uncertainty, np.ones(6, np.int16))
    made = combine(how, windows, np.array([2, 2, 2]))
    assert np.isfinite(made.logits[:2]).all()
    assert np.isnan(made.logits[2]).all()
    with pytest.raises(FloatingPointError, match="no numbers for 1 of 3 rows"):
        made.checked()


def engine_of(model: EarlyExitModel, criterion: Criterion) -> Engine:
    return Engine(LoadedModel(model, EngineConfig(criterion=criterion, dtype="fp32", token_budget=64)))


def made_texts(seed: int) -> TextRows:
    counts = np.random.default_rng(seed).choice([1, 1, 2, 3, 7], 40)
    return TextRows(windows=random_rows(int(counts.sum()), 40, seed), counts=counts)


def one_by_one(
    engine: Engine, long_texts: LongTexts, texts: TextRows
) -> tuple[list[Predictions], list[list[Predictions]]]:
    """Run window after window of each text alone, until one is certain; return the text's predictions, and its windows'."""
    combined, computed = [], []
    for text in range(len(texts)):
        done: list[Predictions] = []
        for window in range(texts.bounds[text], texts.bounds[text + 1]):
            done.append(engine.run(texts.windows.take(np.array([window]))))
            if long_texts.combine == "first-certain" and done[-1].uncertainty[0] <= long_texts.certain:
                break
        joined = Predictions.join(done)
        combined.append(combine(long_texts.combine, joined, np.array([len(done)])))
        computed.append(done)
    return combined, computed


def models() -> dict[str, EarlyExitModel]:
    labels = random_exits(EarlyExitModel(label_set_classifier("bert", TAGS).config), "pooled")
    return {"classes": new_model("attention"), "labels": labels, "value": regression_model()}


@pytest.mark.parametrize("how", COMBINATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_texts_together_are_texts_alone(kind: str, how: str) -> None:
    texts = made_texts(3)
    engine = engine_of(models()[kind], Criterion() if kind == "value" else Criterion(speed=0.9))
    middle = np.sort(engine.run(texts.windows).uncertainty)[len(texts.windows) // 2 :][:2].mean()
    long_texts = LongTexts(combine=how, certain=float(middle))
    if kind == "value" and how == "first-certain":
        with pytest.raises(
            InputError, match="window_combine first-certain needs an uncertainty of each window, and the model"
        ):
            TextEngine(engine, long_texts)
        return
    got = TextEngine(engine, long_texts).run(texts)
    combined, computed = one_by_one(engine, long_texts, texts)
    assert got.windows.tolist() == [len(done) for done in computed]
    wanted = Predictions.join(combined)
    np.testing.assert_allclose(got.predictions.logits, wanted.logits, atol=20 * TOLERANCE)
    np.testing.assert_allclose(got.predictions.uncertainty, wanted.uncertainty, atol=20 * TOLERANCE)
    np.testing.assert_array_equal(got.predictions.exit_layers, wanted.exit_layers)
    for text, done in enumerate(computed):
        lengths = texts.windows.lengths[texts.bounds[text] : texts.bounds[text] + len(done)]
        layers = np.concatenate([window.exit_layers for window in done])
        assert got.tokens[text] == lengths.sum()
        assert got.layer_tokens[text] == (lengths * layers).sum()
        assert got.flops[text] == pytest.approx(engine.flops.rows(lengths, layers).sum())
    assert got.predictions.layer_tokens == got.layer_tokens.sum()
    skipped = texts.counts.sum() - got.windows.sum()
    assert (skipped > 10) == (how == "first-certain")
    full = engine.flops.full_depth(texts.windows.lengths)
    assert TextEngine(engine, long_texts).full_depth_flops(texts).sum() == pytest.approx(full.sum())


@pytest.mark.parametrize("how", COMBINATIONS)
def test_a_text_does_not_depend_on_its_neighbors(how: str) -> None:
    texts = made_texts(4)
    engine = TextEngine(engine_of(new_model(), Criterion(speed=0.9)), LongTexts(combine=how, certain=0.8))
    whole = engine.run(texts)
    order = np.random.default_rng(0).permutation(len(texts))
    parts = [engine.run(texts.take(order).slice(part)) for part in (range(13), range(13, 13), range(13, 40))]
    joined = TextPredictions.join(parts)
    np.testing.assert_array_equal(joined.windows, whole.windows[order])
    np.testing.assert_array_equal(joined.predictions.exit_layers, whole.predictions.exit_layers[order])
    np.testing.assert_allclose(joined.predictions.logits, whole.predictions.logits[order], atol=20 * TOLERANCE)
    np.testing.assert_allclose(joined.flops, whole.flops[order])


def test_texts_of_one_window_are_rows() -> None:
    rows, engine = random_rows(50, 40, seed=1), engine_of(new_model(), Criterion(speed=0.9))
    plain = engine.run(rows)
    for long_texts in (None, *(LongTexts(combine=how) for how in COMBINATIONS)):
        got = TextEngine(engine, long_texts).run(TextRows.whole(rows))
        np.testing.assert_array_equal(got.predictions.logits, plain.logits)
        np.testing.assert_array_equal(got.windows, np.ones(50))
        np.testing.assert_allclose(got.flops, engine.flops.rows(rows.lengths, plain.exit_layers))
    assert TextEngine(engine, LongTexts()).run(TextRows.whole(rows.slice(range(0)))).predictions.logits.shape == (0, 3)


def test_first_certain_is_refused_where_nothing_is_certain() -> None:
    engine = engine_of(new_model(), Criterion(name="patience", patience=2))
    with pytest.raises(InputError, match="and criterion patience counts exits; take mean or max"):
        TextEngine(engine, LongTexts(combine="first-certain"))
    with pytest.raises(ValueError, match="do not describe"):
        TextRows(windows=random_rows(3, 5, 0), counts=np.array([1, 1]))
