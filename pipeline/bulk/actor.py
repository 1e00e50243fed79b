"""The classify actor: it holds a model and its engine, and turns bundles of tokens into bundles of predictions.

Several calls are at work in it at a time. One computes, and holds the lock; the others turn tables into arrays, or back.
"""

import os
import sys
import threading
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import ray
import torch

from models.early_exit import EarlyExitModel
from models.precision import precision_on
from pipeline.bulk.attempts import MAX_STARTS, attempts_of, bounded
from pipeline.bulk.bundle import Bundle
from pipeline.bulk.codec import label_counts, score_histograms, text_rows, with_predictions
from pipeline.bulk.quarantine import Isolated, describe, isolate
from pipeline.bulk.spec import ClassifySpec
from pipeline.calibration.audit import AuditSpec, audit
from pipeline.calibration.drift.cells import BINS, cells_of
from pipeline.calibration.history.recording import ExitRecorder
from pipeline.cluster.resources import ActorPlan
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.engine.memory import has_lost_device
from pipeline.engine.texts.engine import TextEngine
from pipeline.engine.texts.rows import TextPredictions, TextRows
from pipeline.histograms import (
    LENGTH_EDGES,
    UNCERTAINTY_BINS,
    counts_by_group,
    length_bins,
    uncertainty_bins,
)
from pipeline.rejects import Reason
from pipeline.rows import TokenRows
from pipeline.storage.model_cache import checked_model


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifyBundle:
    """Classifies the rows of one bundle, any range of them at a time."""

    name: ClassVar[str] = "classify"
    failure: ClassVar[Reason] = Reason.CLASSIFY_FAILED

    engine: TextEngine
    texts: TextRows

    def run(self, rows: range) -> TextPredictions:
        """Classify neighbouring rows; ends the process if the GPU cannot be used any more."""
        try:
            return self.engine.run(self.texts.slice(rows)).checked()
        except RuntimeError as error:
            if not has_lost_device(error):
                raise
            # Let Ray start the actor again; the attempt log then isolates the row.
            print(f"{self.name}: {describe(error)}; this process ends", file=sys.stderr, flush=True)
            os._exit(1)

    def probe(self) -> TextPredictions:
        """Classify a row of one token."""
        return self.engine.run(TextRows.whole(TokenRows.from_lists([[0]]))).checked()


class ClassifyActor:
    """Loads the model when Ray starts it, and then classifies a bundle at every call."""

    def __init__(self, spec: ClassifySpec, plan: ActorPlan) -> None:
        torch.set_num_threads(plan.threads)
        self.spec = spec
        key = f"start-{ray.get_runtime_context().get_actor_id()}"  # the same when Ray starts this actor again
        with bounded(spec.output.folder, key, MAX_STARTS, "while they loaded the model; give them more memory"):
            precision = precision_on(spec.engine.dtype, torch.device(plan.device))
            directory = checked_model(spec.model, spec.identity.weights, precision=(precision, spec.precision))
            model = EarlyExitModel.from_pretrained(directory, config=spec.config)
            self.labels, self.layers = model.labels, model.shape.layers
            self.engine = TextEngine(Engine(LoadedModel(model, spec.engine, plan.device)), spec.tokenizer.long_texts)
            self.full_depth = self.engine.with_criterion(spec.engine.criterion.at_full_depth())
            self.recorder = ExitRecorder(self.engine)
        # Whoever computes holds it, and has the only attempt log of this process: if the process dies, that bundle is suspect.
        self._turn = threading.Lock()
        # A process before this one has died: one that dies between tables and arrays must not do so while a bundle computes.
        self._restarted = bool(ray.get_runtime_context().was_current_actor_reconstructed)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Classify one bundle, and audit it if that is asked for."""
        bundle = Bundle.from_arrow(batch)
        texts = text_rows(bundle.rows)
        with self._turn:
            with bundle.stage(ClassifyBundle.name):
                isolated = self._classify(bundle, texts)
                bundle.reject(isolated.lost)
                made = TextPredictions.join(isolated.pieces)
                texts = text_rows(bundle.rows) if isolated.lost else texts
            if self.spec.audit is not None:
                with bundle.stage("audit"):
                    self._audit(bundle, self.spec.audit, texts, made)
        with self._turn if self._restarted else nullcontext():
            self._count(bundle, texts, made)
            results, keep = self.spec.results, self.spec.columns.keep
            bundle.rows = with_predictions(bundle.rows, made.predictions, self.labels, results, keep, made.windows)
            self._count_predictions(bundle)
            return bundle.to_arrow()

    def _classify(self, bundle: Bundle, texts: TextRows) -> Isolated[TextPredictions]:
        """Return the predictions of the rows that the engine can work on, and why the others cannot be classified."""
        work = ClassifyBundle(engine=self.engine, texts=texts)
        return isolate(work, len(texts), attempts_of(self.spec.output.folder, work.name, bundle.receipts))

    def _audit(self, bundle: Bundle, spec: AuditSpec, texts: TextRows, made: TextPredictions) -> None:
        """Note on the receipts what full depth says to some rows, and keep what every exit does."""
        shards = {receipt.shard: receipt.rows_out for receipt in bundle.receipts}
        counts = audit(self.engine, self.full_depth, spec, shards, texts, made.predictions)
        bundle.audits, flops = self.recorder.record(spec, shards, texts, bundle.rows)
        for shard, spent in flops.items():
            counts[shard]["audit_flops"] += spent
        bundle.note_each(lambda number: counts.get(bundle.receipts[number].shard, {}))

    def _count(self, bundle: Bundle, texts: TextRows, made: TextPredictions) -> None:
        """Note on the receipts where rows exited and what that cost, padding by the tokens of each shard."""
        predictions, numbers, shards = made.predictions, bundle.shard_numbers(), len(bundle.receipts)
        padding = predictions.padding_tokens / max(predictions.layer_tokens, 1)
        exits_B = predictions.exit_layers.astype(np.int64) - 1
        exits = counts_by_group(numbers, exits_B, shards, self.layers)
        cells = counts_by_group(numbers, cells_of(exits_B, predictions.uncertainty), shards, self.layers * BINS)
        uncertainty = counts_by_group(numbers, uncertainty_bins(predictions.uncertainty), shards, UNCERTAINTY_BINS)
        lengths = counts_by_group(numbers, length_bins(texts.lengths), shards, len(LENGTH_EDGES) + 1)
        counted = (made.layer_tokens, made.flops, self.engine.full_depth_flops(texts), made.tokens, made.windows)
        sums = [np.bincount(numbers, weights, minlength=shards) for weights in counted]
        # Rounded at the ends, so that the shards add up to what the bundle has.
        ends = np.rint(np.cumsum(sums[0]) * padding).astype(np.int64)
        padded = np.diff(ends, prepend=0)
        bundle.note_each(
            lambda number: {
                "exits": exits[number],
                "uncertainty_histogram": uncertainty[number],
                "exit_uncertainty": cells[number],
                "length_histogram": lengths[number],
                "layer_tokens": int(sums[0][number]),
                "padding_tokens": int(padded[number]),
                "flops": float(sums[1][number]),
                "flops_full_depth": float(sums[2][number]),
                "tokens": int(sums[3][number]),
                "windows": int(sums[4][number]),
            }
        )

    def _count_predictions(self, bundle: Bundle) -> None:
        """Note on the receipts what is predicted, by the columns that are written."""
        results, numbers, shards = self.spec.results, bundle.shard_numbers(), len(bundle.receipts)
        labels = label_counts(bundle.rows, self.labels, results, numbers, shards)
        scores = score_histograms(bundle.rows, results, numbers, shards)
        bundle.note_each(lambda number: {"label_counts": labels[number], "score_histogram": scores[number]})
