"""Text in, results out: what the HTTP application asks."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import HTTPException

from models.exits.criterion import Criterion
from pipeline.calibration.curve import Curve
from pipeline.calibration.guarantees import CONFIDENCE
from pipeline.corpus.tokenize import Tokenized, Tokenizer
from pipeline.rows import Predictions, Thresholds
from pipeline.schema import EXIT_LAYER, LABEL, LABEL_ID, PROBABILITIES, SCORE, TRUNCATED, UNCERTAINTY, VALUE
from pipeline.serving.queue import EngineQueue, QueueFullError
from pipeline.serving.schema import ClassifyRequest

STUCK_S = 120.0
"""A batch takes a second or so; an engine that has not come back after this long never will."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a caller may ask for at once."""

    rows: int = 1000
    """Texts, or pairs, in a request."""
    body_bytes: int = 4 << 20
    body_seconds: float = 10.0
    """To send the whole request."""
    answer_seconds: float = 30.0
    """From the whole request to its answer."""


class Classifier:
    """Text in, results out: a tokenizer and an engine's queue, for coroutines."""

    def __init__(
        self, queue: EngineQueue, tokenizer: Tokenizer, criterion: Criterion, limits: Limits, curve: Curve | None = None
    ) -> None:
        """`criterion` judges requests that ask for nothing else; `curve`, of the calibration, finds what others ask for."""
        self.queue, self.tokenizer, self.criterion, self.limits = queue, tokenizer, criterion, limits
        self.labels, self.regression = queue.engine.model.labels, queue.engine.model.regression
        self.layers = queue.engine.model.shape.layers
        self.curve = curve
        self.takes_speed = not queue.engine.config.criterion.full_depth and criterion.name != "patience"
        self._tokenizing = ThreadPoolExecutor(
            1, thread_name_prefix="tokenize"
        )  # the work itself is on all cores, in Rust

    async def classify(self, request: ClassifyRequest) -> list[dict[str, Any]]:
        """Answer a request; raise HTTPException as this module's head says."""
        texts, pairs = self._rows_of(request)
        criterion = self._criterion_of(request)
        try:
            async with asyncio.timeout(self.limits.answer_seconds):
                self.queue.check_room()
                loop = asyncio.get_running_loop()
                tokenized = await loop.run_in_executor(self._tokenizing, self.tokenizer, texts, pairs)
                thresholds = None if criterion is None else np.tile(self._thresholds(criterion), (len(texts), 1))
                predictions = await asyncio.wrap_future(self.queue.submit(tokenized.rows, thresholds))
        except QueueFullError as error:
            raise HTTPException(429, str(error), {"Retry-After": str(error.retry_after_s)}) from error
        except TimeoutError as error:
            raise HTTPException(504, f"no answer within {self.limits.answer_seconds:g} s") from error
        return self._results(predictions, tokenized, probabilities=request.probabilities)

    def describe(self) -> dict[str, Any]:
        """Tell what is served, and the limits."""
        engine = self.queue.engine
        return {
            "labels": None if self.regression else self.labels,
            "layers": self.layers,
            "exit_layers": list(engine.model.exit_layers),
            "criterion": self.criterion.describe(),
            "speed_per_request": self.takes_speed,
            "calibrated": self.curve is not None,
            "max_tokens": self.tokenizer.spec.max_tokens,
            "dtype": engine.loaded.precision,
            "device": engine.loaded.device.type,
            "max_rows": self.limits.rows,
            "max_body_bytes": self.limits.body_bytes,
        }

    def _rows_of(self, request: ClassifyRequest) -> tuple[list[str], list[str] | None]:
        texts = [request.text] if isinstance(request.text, str) else request.text
        pairs = [request.pair] if isinstance(request.pair, str) else request.pair
        if len(texts) > self.limits.rows:
            raise HTTPException(422, f"text: {len(texts)} texts; at most {self.limits.rows} in a request")
        if pairs is not None and (
            len(pairs) != len(texts) or isinstance(request.pair, str) != isinstance(request.text, str)
        ):
            raise HTTPException(422, f"pair: {len(pairs)} second texts for {len(texts)} first ones")
        for name, values in (("text", texts), ("pair", pairs or ())):
            for place, value in enumerate(values):
                if problem := _problem_of(value):
                    raise HTTPException(422, f"{name}: number {place} {problem}")
        return texts, pairs

    def _criterion_of(self, request: ClassifyRequest) -> Criterion | None:
        """Return what judges this request's rows; None where the engine's criterion has no thresholds to vary."""
        asked = request.asked()
        if len(asked) > 1:
            raise HTTPException(422, f"{' and '.join(asked)} exclude each other")
        if "target_speedup" in asked or "max_disagreement" in asked:
            return self._calibrated(**asked)
        if not self.takes_speed:
            if asked and self.criterion.name == "patience":
                raise HTTPException(422, f"speed: this model is served with {self.criterion.describe()}")
            return None
        return Criterion(name=self.criterion.name, speed=asked["speed"]) if asked else self.criterion

    def _calibrated(self, target_speedup: float | None = None, max_disagreement: float | None = None) -> Criterion:
        """Look up the thresholds for a speed-up or a limit."""
        name = "max_disagreement" if target_speedup is None else "target_speedup"
        if self.curve is None:
            raise HTTPException(422, f"{name}: this model is served without a calibration (jobs/calibrate.py)")
        if target_speedup is None:
            assert max_disagreement is not None
            return self.curve.within(max_disagreement, CONFIDENCE).criterion
        try:
            return self.curve.at_speedup(target_speedup).criterion
        except ValueError as error:
            raise HTTPException(422, f"{name}: {error}") from error

    def _thresholds(self, criterion: Criterion) -> Thresholds:
        """Lay a criterion out by layer: [L]."""
        return np.array([criterion.speed_at(layer) for layer in range(1, self.layers + 1)], np.float32)

    def _results(self, predictions: Predictions, tokenized: Tokenized, *, probabilities: bool) -> list[dict[str, Any]]:
        answer: dict[str, list[Any]] = {}
        if self.regression:
            answer[VALUE] = predictions.logits[:, 0].tolist()
        else:
            label_ids = predictions.label_ids.tolist()
            answer |= {LABEL: [self.labels[i] for i in label_ids], LABEL_ID: label_ids}
            answer[SCORE] = predictions.scores.tolist()
            if probabilities:
                answer[PROBABILITIES] = predictions.probabilities.tolist()
        answer[EXIT_LAYER] = predictions.exit_layers.tolist()
        answer[UNCERTAINTY] = predictions.uncertainty.tolist()
        answer[TRUNCATED] = tokenized.truncated.tolist()
        return [dict(zip(answer, row, strict=True)) for row in zip(*answer.values(), strict=True)]


def _problem_of(text: str) -> str | None:
    """Say why a text is none, by the rules of the bulk job's reader."""
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, as in the JSON escape \ud800
        return "holds an escape that is no UTF-8"
    return None if text.strip() else "is empty"
