"""The classify actor: it holds a model and its engine, and turns shards of tokens into shards of predictions."""

import os
import sys
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pyarrow as pa
import ray
import torch

from models.early_exit import EarlyExitModel
from pipeline.bulk.attempts import MAX_STARTS, attempts_of, bounded
from pipeline.bulk.codec import token_rows, with_predictions
from pipeline.bulk.quarantine import describe, isolate
from pipeline.bulk.shard_block import ShardBlock
from pipeline.bulk.spec import ClassifySpec
from pipeline.calibration.audit import audit
from pipeline.cluster.resources import ActorPlan
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.output.histograms import length_histogram, uncertainty_histogram
from pipeline.output.receipts import Receipt
from pipeline.rejects import Reason
from pipeline.rows import Predictions, TokenRows
from pipeline.storage.model_cache import checked_model


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifyShard:
    """Classifies the rows of one shard, any range of them at a time."""

    name: ClassVar[str] = "classify"
    failure: ClassVar[Reason] = Reason.CLASSIFY_FAILED

    engine: Engine
    tokens: TokenRows

    def run(self, rows: range) -> Predictions:
        """Classify neighbouring rows; ends the process if the GPU cannot be used any more."""
        try:
            return self.engine.run(self.tokens.slice(rows)).checked()
        except torch.AcceleratorError as error:
            # CUDA errors are sticky: exit, let Ray restart the actor; the attempt log then isolates the row.
            print(f"{self.name}: {describe(error)}; this process ends", file=sys.stderr, flush=True)
            os._exit(1)

    def probe(self) -> Predictions:
        """Classify a row of one token."""
        return self.engine.run(TokenRows.from_lists([[0]])).checked()


class ClassifyActor:
    """Loads the model when Ray starts it, and then classifies a shard at every call."""

    def __init__(self, spec: ClassifySpec, plan: ActorPlan) -> None:
        torch.set_num_threads(plan.threads)
        self.spec = spec
        key = f"start-{ray.get_runtime_context().get_actor_id()}"  # the same when Ray starts this actor again
        with bounded(spec.output.folder, key, MAX_STARTS, "while they loaded the model; give them more memory"):
            model = EarlyExitModel.from_pretrained(checked_model(spec.model, spec.weights), config=spec.config)
            self.labels, self.layers = model.labels, model.shape.layers
            self.engine = Engine(LoadedModel(model, spec.engine, plan.device))
            self.full_depth = self.engine.with_criterion(spec.engine.criterion.at_full_depth())

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Classify one shard, and audit it if that is asked for."""
        block = ShardBlock.from_arrow(batch)
        with block.stage(ClassifyShard.name):
            predictions = self._classify(block)
            tokens = token_rows(block.rows)
            block.receipt = self._count(block.receipt, tokens, predictions)
            keep = self.spec.columns.keep
            block.rows = with_predictions(block.rows, predictions, self.labels, self.spec.results, keep)
        if self.spec.audit is not None:
            with block.stage("audit"):
                shard = block.receipt.shard
                counts = audit(self.engine, self.full_depth, self.spec.audit, shard, tokens, predictions)
            block.receipt = replace(block.receipt, **counts)
        return block.to_arrow()

    def _classify(self, block: ShardBlock) -> Predictions:
        """Return the predictions of the rows that the engine can work on, and make the others rejects."""
        work = ClassifyShard(engine=self.engine, tokens=token_rows(block.rows))
        attempts = attempts_of(self.spec.output.folder, work.name, block.receipt)
        isolated = isolate(work, len(block.rows), attempts)
        block.reject(isolated.lost)
        return Predictions.join(isolated.pieces)

    def _count(self, receipt: Receipt, tokens: TokenRows, predictions: Predictions) -> Receipt:
        """Note on the receipt where rows exited and what that cost."""
        flops = self.engine.flops
        return replace(
            receipt,
            exits=np.bincount(predictions.exit_layers, minlength=self.layers + 1)[1:].tolist(),
            uncertainty_histogram=uncertainty_histogram(predictions.uncertainty),
            length_histogram=length_histogram(tokens.lengths),
            layer_tokens=predictions.layer_tokens,
            padding_tokens=predictions.padding_tokens,
            flops=float(flops.rows(tokens.lengths, predictions.exit_layers).sum()),
            flops_full_depth=float(flops.full_depth(tokens.lengths).sum()),
        )
