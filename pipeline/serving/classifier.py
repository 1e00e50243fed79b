"""Text in, results out: from a request's texts to rows of the engine's queue, and from predictions to results."""

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from itertools import compress
from typing import Any

import numpy as np
from fastapi import HTTPException

from models.exits.criterion import Criterion
from models.exits.task import Task
from pipeline.calibration.curve import Curve
from pipeline.calibration.targets import Target, check_limits, choose
from pipeline.corpus.tokenize import Tokenized, Tokenizer
from pipeline.errors import InputError
from pipeline.rows import Predictions, Thresholds
from pipeline.schema import (
    EXIT_LAYER,
    LABEL,
    LABEL_ID,
    LABELS,
    PROBABILITIES,
    PROBABILITY,
    SCORE,
    TRUNCATED,
    UNCERTAINTY,
    VALUE,
)
from pipeline.serving.limits import RequestLimits
from pipeline.serving.queue import EngineQueue, QueueFullError
from pipeline.serving.schema import ClassifyRequest

CHARACTERS_PER_TOKEN = 8
"""Characters of texts that may wait to be tokenized, for each token that may wait for the engine; most texts have four."""

REMEMBERED = 128
"""Targets of requests whose thresholds are remembered."""


class TextClassifier:
    """A tokenizer and the queue of an engine, for coroutines."""

    def __init__(
        self,
        queue: EngineQueue,
        tokenizer: Tokenizer,
        criterion: Criterion,
        limits: RequestLimits,
        curve: Curve | None = None,
    ) -> None:
        """Serve requests by `criterion`, unless they set a target of their own; `curve` finds thresholds for such targets."""
        self.queue, self.tokenizer, self.criterion, self.limits = queue, tokenizer, criterion, limits
        self.labels, self.task = queue.engine.model.labels, queue.engine.model.task
        self.layers = queue.engine.model.shape.layers
        self.curve = curve
        self.takes_speed = not queue.engine.config.criterion.full_depth and criterion.name != "patience"
        # One thread is enough: the tokenizer runs on all cores by itself, in Rust.
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenize")
        self._calibrated = lru_cache(REMEMBERED)(self._choose)  # over a thousand classes it takes tens of milliseconds
        self._characters = 0
        """Number of characters that wait for that thread or are in it: they take time, however few tokens they make."""

    async def classify(self, request: ClassifyRequest) -> dict[str, Any]:
        """Return a `ClassifyResponse`, in plain values; raise HTTPException (422, 429 or 504) for a request without results."""
        texts, pairs = self._rows_of(request)
        criterion, note = self._criterion_of(request)
        try:
            async with asyncio.timeout(self.limits.answer_seconds):
                tokenized = await self._tokenize(texts, pairs)
                thresholds = (
                    None if criterion is None else np.repeat(self._thresholds(criterion)[None], len(texts), axis=0)
                )
                predictions = await asyncio.wrap_future(self.queue.submit(tokenized.rows, thresholds))
        except QueueFullError as error:
            raise HTTPException(429, str(error), {"Retry-After": str(error.retry_after_s)}) from error
        except TimeoutError as error:
            raise HTTPException(504, f"no answer within {self.limits.answer_seconds:g} s") from error
        results = self._results(predictions, tokenized, probabilities=request.probabilities)
        return {"results": results} | ({"note": note} if note else {})

    async def _tokenize(self, texts: list[str], pairs: list[str] | None) -> Tokenized:
        """Tokenize on the thread for it; raise QueueFullError if it or the engine has too much to do already."""
        self.queue.check_room()
        characters = sum(map(len, texts)) + sum(map(len, pairs or ()))
        if self._characters and self._characters + characters > CHARACTERS_PER_TOKEN * self.queue.queue_tokens:
            raise QueueFullError(self.queue.retry_after_s())
        self._characters += characters
        work = self._tokenizing.submit(self.tokenizer, texts, pairs)
        work.add_done_callback(partial(self._forget, asyncio.get_running_loop(), characters))
        return await asyncio.wrap_future(work)

    def _forget(self, loop: asyncio.AbstractEventLoop, characters: int, _work: object) -> None:
        """Take texts off the count, in the loop that counts, once the thread is done with them or they were cancelled."""

        def subtract() -> None:
            self._characters -= characters

        with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the server
            loop.call_soon_threadsafe(subtract)

    def describe(self) -> dict[str, Any]:
        """Return what is served, and the limits, as GET /model shows them."""
        engine = self.queue.engine
        return {
            "task": self.task.value,
            "labels": None if self.task is Task.VALUE else self.labels,
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
        """Return the first texts and, for pairs, the second ones, all of them checked."""
        texts = [request.text] if isinstance(request.text, str) else request.text
        pairs = [request.pair] if isinstance(request.pair, str) else request.pair
        if len(texts) > self.limits.rows:
            raise HTTPException(422, f"text: {len(texts)} texts; at most {self.limits.rows} in a request")
        if pairs is not None and (
            len(pairs) != len(texts) or isinstance(request.pair, str) != isinstance(request.text, str)
        ):
            raise HTTPException(422, f"pair: {len(pairs)} second texts for {len(texts)} first ones")
        for name, values in (("text", texts), ("pair", pairs or ())):
            for index, value in enumerate(values):
                if problem := _problem_of(value):
                    raise HTTPException(422, f"{name}: number {index} {problem}")
        return texts, pairs

    def _criterion_of(self, request: ClassifyRequest) -> tuple[Criterion | None, str]:
        """Return the criterion for this request's rows, and what is to be known of it.

        It is None where the engine's own has no thresholds to vary.
        """
        try:
            target = request.target()
            if target.needs_calibration:
                return self._calibrated(target)
        except InputError as error:
            raise HTTPException(422, str(error).replace("`", "")) from error
        if not self.takes_speed:
            if request.speed is not None and self.criterion.name == "patience":
                raise HTTPException(422, f"speed: this model is served with {self.criterion.describe()}")
            return None, ""
        own = self.criterion if request.speed is None else replace(self.criterion, speed=request.speed, speeds=())
        return own, ""

    def _choose(self, target: Target) -> tuple[Criterion, str]:
        """Return the calibrated thresholds for a speed-up or limits, and why these allow nothing but full depth if they do not.

        Raises InputError where there are none.
        """
        if self.curve is None:
            raise InputError(
                target.asked, "needs a calibration, and this model is served without one (jobs/calibrate.py)"
            )
        check_limits(target, self.queue.engine.model, self.curve)
        criterion = choose(target, self.curve).criterion
        if target.limits is None or not criterion.full_depth:
            return criterion, ""
        return criterion, f"full depth, since nothing faster can be guaranteed: {self.curve.shortage(target.limits)}"

    def _thresholds(self, criterion: Criterion) -> Thresholds:
        """Return the threshold of every layer, layer 1 first, as [L] float32."""
        return np.array([criterion.speed_at(layer) for layer in range(1, self.layers + 1)], np.float32)

    def _results(self, predictions: Predictions, tokenized: Tokenized, *, probabilities: bool) -> list[dict[str, Any]]:
        columns: dict[str, list[Any]] = {}
        if self.task is Task.VALUE:
            columns[VALUE] = predictions.logits[:, 0].tolist()
            if probabilities:
                columns[PROBABILITY] = predictions.value_probabilities.tolist()
        elif self.task is Task.LABELS:
            sets = predictions.label_sets.tolist()
            columns[LABELS] = [list(compress(self.labels, row)) for row in sets]
        else:
            label_ids = predictions.label_ids.tolist()
            columns |= {LABEL: [self.labels[i] for i in label_ids], LABEL_ID: label_ids}
        if self.task is not Task.VALUE:
            columns[SCORE] = predictions.scores.tolist()
            if probabilities:
                columns[PROBABILITIES] = predictions.probabilities.tolist()
        columns[EXIT_LAYER] = predictions.exit_layers.tolist()
        columns[UNCERTAINTY] = predictions.uncertainty.tolist()
        columns[TRUNCATED] = tokenized.truncated.tolist()
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _problem_of(text: str) -> str | None:
    """Return what is wrong with a text by the rules of the bulk job's reader; None if it can be classified."""
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, as in the JSON escape \ud800
        return "holds an escape that is no UTF-8"
    return None if text.strip() else "is empty"
