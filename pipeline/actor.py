"""The classify actor: holds a model and its engine, turns shards of tokens into shards of predictions."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from models.early_exit import EarlyExitModel
from pipeline.cluster import ActorPlan
from pipeline.engine import Engine
from pipeline.receipts import ShardBlock
from pipeline.rows import Predictions, TokenRows
from pipeline.schema import (
    DETAIL,
    EXIT_LAYER,
    LABEL,
    LABEL_ID,
    PROBABILITIES,
    REASON,
    ROW,
    SCORE,
    SEGMENT,
    TOKENS,
    UNCERTAINTY,
    output_schema,
)
from pipeline.stages import ClassifySpec


class ClassifyActor:
    """Holds the model and its engine; turns tokens into predictions."""

    def __init__(self, spec: ClassifySpec, plan: ActorPlan) -> None:
        torch.set_num_threads(plan.threads)
        self.spec = spec
        model = EarlyExitModel.from_pretrained(spec.model)
        self.labels = np.array(model.labels)
        self.layers = model.shape.layers
        self.engine = Engine(model, spec.engine, plan.device)

    def __call__(self, batch: pa.Table) -> pa.Table:
        block = ShardBlock.from_arrow(batch)
        with block.stage("classify"):
            rows = block.rows
            usable = pc.is_null(rows[REASON])
            good = rows.filter(usable).combine_chunks()
            tokens = _token_rows(good)
            predictions = self.engine.run(tokens)
            block.rows = self._results(good, predictions, rows.filter(pc.invert(usable)))
            exits = np.bincount(predictions.exit_layers, minlength=self.layers + 1)[1:]
            flops = self.engine.flops
            block.receipt = replace(
                block.receipt,
                exits=exits.tolist(),
                layer_tokens=predictions.layer_tokens,
                filler_tokens=predictions.filler_tokens,
                flops=float(flops.rows(tokens.lengths, predictions.exit_layers).sum()),
                flops_full_depth=float(flops.full_depth(tokens.lengths).sum()),
            )
        return block.to_arrow()

    def _results(self, good: pa.Table, predictions: Predictions, bad: pa.Table) -> pa.Table:
        """Put predictions beside the ids of good rows; rejects ride along in the same table, with null predictions."""
        schema = output_schema(self.spec.columns.keep, probabilities=self.spec.probabilities)
        count, classes = predictions.probabilities.shape
        made = {
            LABEL: pa.array(self.labels[predictions.label_ids], pa.string()),
            LABEL_ID: pa.array(predictions.label_ids),
            SCORE: pa.array(predictions.scores),
            EXIT_LAYER: pa.array(predictions.exit_layers),
            UNCERTAINTY: pa.array(predictions.uncertainty),
        }
        if self.spec.probabilities:
            offsets = pa.array(np.arange(0, (count + 1) * classes, classes, dtype=np.int32))
            made[PROBABILITIES] = pa.ListArray.from_arrays(offsets, pa.array(predictions.probabilities.ravel()))
        results = pa.table(
            {f.name: made.get(f.name, good[f.name] if f.name in good.column_names else None) for f in schema}
        )
        for name in (ROW, REASON, DETAIL):
            results = results.append_column(name, good[name])
        return pa.concat_tables([results, bad.drop_columns([TOKENS, SEGMENT])], promote_options="default")


def _token_rows(rows: pa.Table) -> TokenRows:
    if len(rows) == 0:
        return TokenRows.from_lists([])
    column = rows[TOKENS].combine_chunks()
    offsets = column.offsets.to_numpy().astype(np.int64)
    return TokenRows(
        token_ids=column.values.to_numpy()[offsets[0] : offsets[-1]],
        offsets=offsets - offsets[0],
        segments=rows[SEGMENT].to_numpy(),
    )
