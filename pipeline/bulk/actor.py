"""The classify actor: holds a model and its engine, turns shards of tokens into shards of predictions."""

import os
import sys
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch

from models.early_exit import EarlyExitModel
from pipeline.bulk.quarantine import MAX_STARTS, AttemptLog, Isolated, Stage, attempts_of, bounded, describe, isolate
from pipeline.bulk.reject_rows import rejected
from pipeline.bulk.shard_block import ShardBlock, token_rows
from pipeline.bulk.spec import ClassifySpec
from pipeline.calibration.audit import audit
from pipeline.cluster.resources import ActorPlan
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.output.histograms import length_histogram, uncertainty_histogram
from pipeline.rows import Predictions, TokenRows
from pipeline.schema import (
    DETAIL,
    EXIT_LAYER,
    LABEL,
    LABEL_ID,
    LOGITS,
    PROBABILITIES,
    REASON,
    ROW,
    SCORE,
    SEGMENT,
    TOKENS,
    UNCERTAINTY,
    VALUE,
    travelling,
)
from pipeline.storage.model_cache import checked_model


class ClassifyActor:
    """Holds the model and its engine; turns tokens into predictions."""

    def __init__(self, spec: ClassifySpec, plan: ActorPlan) -> None:
        torch.set_num_threads(plan.threads)
        self.spec = spec
        key = f"start-{ray.get_runtime_context().get_actor_id()}"  # the same when Ray starts this actor again
        with bounded(spec.output.folder, key, MAX_STARTS, "while they loaded the model; give them more memory"):
            model = EarlyExitModel.from_pretrained(checked_model(spec.model, spec.weights))
            self.labels = np.array(model.labels)
            self.layers = model.shape.layers
            self.engine = Engine(LoadedModel(model, spec.engine, plan.device))
            self.full_depth = self.engine.with_criterion(spec.engine.criterion.at_full_depth())

    def __call__(self, batch: pa.Table) -> pa.Table:
        block = ShardBlock.from_arrow(batch)
        with block.stage("classify"):
            rows = block.rows
            usable = pc.is_null(rows[REASON])
            good = rows.filter(usable).combine_chunks()
            isolated = self._run(token_rows(good), attempts_of(self.spec.output.folder, "classify", block.receipt))
            predictions = Predictions.join(isolated.pieces)
            if isolated.lost:
                rows = pa.concat_tables([rejected(good, isolated.lost), rows.filter(pc.invert(usable))])
                usable = pc.is_null(rows[REASON])
                good = rows.filter(usable).combine_chunks()
            tokens = token_rows(good)
            block.rows = self._results(good, predictions, rows.filter(pc.invert(usable)))
            exits = np.bincount(predictions.exit_layers, minlength=self.layers + 1)[1:]
            flops = self.engine.flops
            block.receipt = replace(
                block.receipt,
                exits=exits.tolist(),
                uncertainty_histogram=uncertainty_histogram(predictions.uncertainty),
                length_histogram=length_histogram(tokens.lengths),
                layer_tokens=predictions.layer_tokens,
                padding_tokens=predictions.padding_tokens,
                flops=float(flops.rows(tokens.lengths, predictions.exit_layers).sum()),
                flops_full_depth=float(flops.full_depth(tokens.lengths).sum()),
            )
        if self.spec.audit is not None:
            with block.stage("audit"):
                shard = block.receipt.shard
                counts = audit(self.engine, self.full_depth, self.spec.audit, shard, tokens, predictions)
            block.receipt = replace(block.receipt, **counts)
        return block.to_arrow()

    def _run(self, tokens: TokenRows, attempts: AttemptLog | None) -> Isolated[Predictions]:
        """Send rows through the engine, around those that it cannot answer."""

        def work(part: range) -> Predictions:
            try:
                return self.engine.run(tokens.slice(part)).checked()
            except torch.AcceleratorError as error:
                # A GPU that met an error in a kernel answers this process no more; the next one finds the row by its marker.
                print(f"classify: {describe(error)}; this process ends", file=sys.stderr, flush=True)
                os._exit(1)

        stage = Stage(name="classify", work=work, probe=lambda: self.engine.run(TokenRows.from_lists([[0]])).checked())
        return isolate(stage, len(tokens), attempts)

    def _results(self, good: pa.Table, predictions: Predictions, bad: pa.Table) -> pa.Table:
        """Put predictions beside the ids of good rows; rejects ride along in the same table, with null predictions."""
        made = {
            LABEL: lambda: pa.array(self.labels[predictions.label_ids], pa.string()),
            LABEL_ID: lambda: pa.array(predictions.label_ids),
            SCORE: lambda: pa.array(predictions.scores),
            VALUE: lambda: pa.array(predictions.logits[:, 0]),
            PROBABILITIES: lambda: _lists(predictions.probabilities),
            LOGITS: lambda: _lists(predictions.logits),
            EXIT_LAYER: lambda: pa.array(predictions.exit_layers),
            UNCERTAINTY: lambda: pa.array(predictions.uncertainty),
        }
        names = [*self.spec.results, *travelling(self.spec.columns.keep).names]
        results = pa.table({name: made[name]() if name in made else good[name] for name in names})
        for name in (ROW, REASON, DETAIL):
            results = results.append_column(name, good[name])
        return pa.concat_tables([results, bad.drop_columns([TOKENS, SEGMENT])], promote_options="default")


def _lists(values: npt.NDArray[np.float32]) -> pa.Array:
    """[B, C] -> B lists."""
    count, width = values.shape
    return pa.ListArray.from_arrays(np.arange(0, (count + 1) * width, width, dtype=np.int32), values.ravel())
