"""Classify texts from Python: a list of them, or the batches of anybody's Ray Data pipeline.

    classify = Classifier.from_pretrained("my-model", target_speedup=2)
    classify(["the room was clean", "never again"]).labels

    ds = ray.data.read_parquet("reviews/").filter(expr="stars > 2")
    ds = ds.map_batches(
        offramp.Classifier, fn_constructor_kwargs={"model": "my-model", "text_column": "review"},
        batch_size=16_384, batch_format="pyarrow", num_gpus=1,
    )
    ds.write_parquet("classified/")

Predictions are those of jobs/classify.py for the same model and target. A text that cannot be used (null, empty, not text, or
one for which the model computes no number) costs itself: the columns of its predictions are null.
"""

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar, overload

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import torch

from models.directory.digest import weights_digest
from models.early_exit import EarlyExitModel
from models.exits.task import Task
from models.precision import precision_on
from pipeline.api.batches import Batch, column_of, with_columns
from pipeline.api.pretrained import load_tokenizer_spec
from pipeline.api.results import Results
from pipeline.bulk.codec import name_lists
from pipeline.calibration.curve import Calibration
from pipeline.calibration.targets import Target, by_name, choose, load_calibration, own_criterion
from pipeline.corpus.reader import check_text
from pipeline.corpus.tokenize import Tokenizer, TokenizerSpec
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.engine.texts.engine import TextEngine
from pipeline.engine.texts.rows import TextPredictions, TextRows
from pipeline.errors import InputError
from pipeline.identity import ModelIdentity, dtype_of
from pipeline.schema import (
    EXIT_LAYER,
    LABEL,
    LABEL_ID,
    LABELS,
    ON_REQUEST,
    PREDICTED,
    PROBABILITIES,
    PROBABILITY,
    RESULTS,
    SCORE,
    TRUNCATED,
    UNCERTAINTY,
    VALUE,
    WINDOWS,
)
from pipeline.storage.model_cache import local_model
from pipeline.windows import TRUNCATE, long_texts_of

BatchT = TypeVar("BatchT", bound=Batch)
Mask = npt.NDArray[np.bool_]
Text = str | tuple[str, str] | None
"""A text, a pair of texts, or None, which is answered by nulls."""


class Classifier:
    """Classifies texts with a model, with early exits if it has any: a callable on lists of texts and on batches.

    Classifier("my-model", speed=0.3)(["the room was clean"])
    Classifier("my-model", max_disagreement=0.01)(["is it open?"], ["we close at noon"])
    Classifier("my-model", text_column="review", prefix="offramp_")(data_frame)
    Classifier("my-model", long_texts="windows", window_combine="first-certain")(documents)
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        text_column: str = "text",
        pair_column: str | None = None,
        prefix: str = "",
        probabilities: bool = False,
        speed: float | None = None,
        target_speedup: float | None = None,
        max_disagreement: float | None = None,
        max_missed: float | Mapping[str, float] | None = None,
        max_quality_loss: float | None = None,
        label_threshold: float | Mapping[str, float] | None = None,
        criterion: str | None = None,
        max_tokens: int | None = None,
        long_texts: str = TRUNCATE,
        window_stride: int | None = None,
        max_windows: int | None = None,
        window_combine: str | None = None,
        window_certain: float | None = None,
        dtype: str = "auto",
        device: str = "auto",
    ) -> None:
        """Load a model; raise UserError, with a message of one line, if it or a value cannot be used.

        Args:
            model: Early-exit model or any classifier of a supported family: hub id, directory or s3:// address.
            text_column: Column of a batch that holds the texts.
            pair_column: Column of the second texts, for pairs.
            prefix: Put before the names of the added columns, where a batch has columns of these names.
            probabilities: Whether to return the probabilities of all classes too, or the sigmoid of a model of one logit.
            speed: Exit where the uncertainty is at most this, from 0 (full depth) to 1; default: the model's.
            target_speedup: Save so many FLOPs, 2 for half of them; the model has to be calibrated.
            max_disagreement: Change at most this fraction of the predictions; the model has to be calibrated.
            max_missed: Give at most this fraction of the rows of a class, by full depth, another answer: for every class, or
                those that are named; the model has to be calibrated.
            max_quality_loss: Let accuracy fall by at most this; the model has to be calibrated with true labels.
            label_threshold: Of a model of label sets: the probability above which a label is predicted, or one for each that
                is named; default: the model's, else 0.5.
            criterion: What decides that a row exits, such as 'entropy'; default: the model's.
            max_tokens: Tokens read of a text, or of each window of it; default: what the model can read.
            long_texts: 'truncate', or 'windows', by which all of a long text is read; single texts only.
            window_stride: Tokens that a window has in common with the one before it; default: a quarter.
            max_windows: Windows read of a text at most; default: 256.
            window_combine: What a text gets of its windows: 'mean' (the default), 'max' or 'first-certain'.
            window_certain: With 'first-certain', the uncertainty up to which a window is certain; default: 0.1.
            dtype: Precision: 'auto', 'fp32', 'bf16' or 'int8'.
            device: 'cpu', 'cuda' or 'auto', which is 'cuda' where there is one. In a Ray actor, its CPUs are used.

        """
        self.text_column, self.pair_column, self.prefix = text_column, pair_column, prefix
        target = Target(
            criterion=criterion,
            speed=speed,
            target_speedup=target_speedup,
            max_disagreement=max_disagreement,
            max_missed=by_name(max_missed),
            max_quality_loss=max_quality_loss,
            label_threshold=by_name(label_threshold),
        )
        windows = long_texts_of(
            long_texts,
            window_stride=window_stride,
            max_windows=max_windows,
            window_combine=window_combine,
            window_certain=window_certain,
        )
        _use_cpus_of_actor()
        directory = local_model(str(model))
        loaded = EarlyExitModel.from_pretrained(directory)
        spec = load_tokenizer_spec(directory, loaded, max_tokens)
        self._tokenizer = Tokenizer(spec if windows is None else spec.with_windows(windows))
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if target.needs_calibration:
            calibration = _calibration(directory, loaded, target, self._tokenizer.spec, dtype)
            self.criterion = choose(target, calibration.curve, calibration.timing).criterion
            if target.limits is not None and self.criterion.full_depth:
                shortage = calibration.curve.shortage(target.limits)
                warnings.warn(
                    f"every row runs at full depth, nothing faster can be guaranteed: {shortage}", stacklevel=2
                )
            dtype = _dtype_of(calibration, dtype, device)
        else:
            self.criterion = own_criterion(target, loaded)
        self.labels = None if loaded.regression else list(loaded.labels)
        """Names of the classes, or labels, by index; None if the model predicts a value."""
        self._schema = _schema(loaded.task, probabilities=probabilities, windows=windows is not None)
        config = EngineConfig(criterion=self.criterion, dtype=dtype)
        self._engine = TextEngine(Engine(LoadedModel(loaded, config, device)), self._tokenizer.spec.long_texts)

    @classmethod
    def from_pretrained(cls, model: str | os.PathLike[str], **options: Any) -> Self:
        """Load a model; the options are those of the class."""
        return cls(model, **options)

    @overload
    def __call__(self, batch: Sequence[Text], pairs: Sequence[str | None] | None = None) -> Results: ...
    @overload
    def __call__(self, batch: BatchT) -> BatchT: ...

    def __call__(self, batch: Any, pairs: Sequence[str | None] | None = None) -> Any:
        """Classify a list of texts, or of pairs of them, into Results; or a batch, which is returned with further columns."""
        if isinstance(batch, pa.Table | pd.DataFrame | dict):
            return self._classify_batch(batch)
        if isinstance(batch, str | bytes):
            raise InputError("batch", "is one text; give a list of texts")
        texts: Sequence[object] = batch
        if pairs is None and any(isinstance(row, tuple) for row in batch):
            couples = [row if isinstance(row, tuple) and len(row) == 2 else (None, None) for row in batch]
            texts, pairs = [first for first, _ in couples], [second for _, second in couples]
        if pairs is not None and len(pairs) != len(texts):
            raise InputError("pairs", f"are {len(pairs)} second texts for {len(texts)} first ones")
        return Results(self._classify(texts, pairs))

    def _classify_batch(self, batch: Batch) -> Batch:
        texts = column_of(batch, self.text_column, "text_column")
        pairs = None if self.pair_column is None else column_of(batch, self.pair_column, "pair_column")
        return with_columns(batch, self._classify(texts, pairs), self.prefix)

    def _classify(self, texts: Sequence[object], pairs: Sequence[object] | None) -> pa.Table:
        """Return the columns of the predictions, one row a text, null where it could not be used."""
        firsts = [check_text(text, self.text_column)[0] for text in texts]
        seconds = None if pairs is None else [check_text(text, self.pair_column or "pair")[0] for text in pairs]
        usable = np.array([text is not None for text in firsts], np.bool_)
        if seconds is not None:
            usable &= np.array([text is not None for text in seconds], np.bool_)
        if not usable.any():
            return pa.table([pa.nulls(len(usable), field.type) for field in self._schema], schema=self._schema)
        rows = np.flatnonzero(usable).tolist()
        tokenized = self._tokenizer(_some(firsts, rows), None if seconds is None else _some(seconds, rows))
        counts = np.ones(len(rows), np.int64) if tokenized.windows is None else tokenized.windows
        made = self._engine.run(TextRows(windows=tokenized.rows, counts=counts))
        predicted = self._table(made, tokenized.truncated)
        positions = np.cumsum(usable) - 1
        usable[usable] = np.isfinite(made.predictions.logits).all(1)
        return predicted.take(pa.array(positions, mask=~usable))

    def _table(self, texts: TextPredictions, truncated: Mask) -> pa.Table:
        """Lay predictions out in columns."""
        predictions = texts.predictions
        made: dict[str, Any] = {EXIT_LAYER: predictions.exit_layers, UNCERTAINTY: predictions.uncertainty}
        made |= {TRUNCATED: truncated, WINDOWS: texts.windows}
        if self.labels is None:
            made |= {VALUE: predictions.logits[:, 0], PROBABILITY: predictions.value_probabilities}
        elif LABELS in self._schema.names:
            made |= {LABELS: name_lists(predictions.label_sets, self.labels), SCORE: predictions.scores}
        else:
            label_ids = predictions.label_ids
            made |= {LABEL: np.array(self.labels, object)[label_ids], LABEL_ID: label_ids, SCORE: predictions.scores}
        if PROBABILITIES in self._schema.names:
            made[PROBABILITIES] = list(predictions.probabilities)
        arrays = [
            made[f.name] if isinstance(made[f.name], pa.Array) else pa.array(made[f.name], f.type) for f in self._schema
        ]
        return pa.table(arrays, schema=self._schema)


def _calibration(
    directory: str, model: EarlyExitModel, target: Target, tokenizer: TokenizerSpec, dtype: str
) -> Calibration:
    """Load the model's calibration; raise UserError if there is none of this very model in this dtype."""
    identity = ModelIdentity.of(model, weights_digest(directory), tokenizer)
    return load_calibration(directory, target, model, identity, dtype, tokenizer.long_texts)


def _dtype_of(calibration: Calibration, dtype: str, device: str) -> str:
    """Return the dtype in which a calibration's thresholds hold; raise UserError if this device would compute in another."""
    if calibration.computed_in is None:
        return dtype
    chosen = dtype_of(calibration.computed_in)
    here = precision_on(chosen, torch.device(device))
    if here != calibration.computed_in:
        raise InputError("dtype", f"{chosen} is {here} here, and the model was calibrated in {calibration.computed_in}")
    return chosen


def _schema(task: Task, *, probabilities: bool, windows: bool) -> pa.Schema:
    """Return the columns that a model's predictions have."""
    names = (*PREDICTED[task], *([ON_REQUEST[task]] if probabilities else []), EXIT_LAYER, UNCERTAINTY, TRUNCATED)
    names += (WINDOWS,) if windows else ()
    return pa.schema([pa.field(name, RESULTS[name]) for name in names])


def _some(texts: Sequence[str | None], rows: list[int]) -> list[str]:
    """Return the texts of rows that have one."""
    return [text for row in rows if (text := texts[row]) is not None]


def _use_cpus_of_actor() -> None:
    """In a Ray actor, keep torch and the tokenizer to the CPUs that Ray has given it."""
    if "ray" not in sys.modules:
        return
    from pipeline.cluster.resources import actor_threads  # it loads Ray, which a script may do without

    threads = actor_threads()
    if threads is not None:
        torch.set_num_threads(threads)
        os.environ.setdefault("RAYON_NUM_THREADS", str(threads))  # read when the tokenizer first encodes a batch
