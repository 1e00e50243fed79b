"""What every exit says of audited rows, kept beside the parts: a later calibration needs no other sample.

Where a row would exit at other thresholds follows from all exits alone. So audited rows are run once more, through every exit,
whatever thresholds are in force: a record depends on model and row, and those of nights with other thresholds can be pooled.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from models.exits.criterion import Criterion
from pipeline.calibration.audit import AuditSpec, draw_from_bundle
from pipeline.engine.engine import Engine
from pipeline.engine.rules import RecordedExits
from pipeline.engine.texts.engine import TextEngine
from pipeline.engine.texts.rows import TextRows
from pipeline.schema import AUDITS, LENGTHS, LOGITS, LTE, ROW, SHARD, TRUNCATED

MOST_BYTES = 1024
"""Bytes of an audited row's record, in the mean: of a model with many classes and exits, fewer of the audited rows have one."""


class Recorded(NamedTuple):
    """The record of some rows of a bundle."""

    rows: pa.Table
    """By `schema.AUDITS`."""
    flops: dict[str, float]
    """What recording them took, by shard."""


class ExitRecorder:
    """Runs rows of a bundle through every exit of a model."""

    def __init__(self, engine: TextEngine) -> None:
        """Share the loaded model of an engine that classifies, and its thresholds of labels."""
        config = engine.engine.config
        # No row exits by it, and every model has it: patience needs neither classes nor a learned exit.
        criterion = Criterion(name="patience", label_thresholds=config.criterion.label_thresholds)
        self._engine = Engine(engine.engine.loaded, replace(config, criterion=criterion, exits=None))
        values = len(self._engine.model.exit_layers) * (self._engine.model.shape.classes + 1)
        self.fraction = min(1.0, MOST_BYTES / (np.float32().nbytes * values))
        """Fraction of the audited rows that are recorded, in (0, 1]."""

    def record(self, spec: AuditSpec, shards: Mapping[str, int], texts: TextRows, rows: pa.Table) -> Recorded:
        """Record what every exit says of some audited rows of a bundle; `shards` has the number of rows of each, in order.

        `rows` are those of the texts, by `schema.token_schema`.
        """
        by_shard = draw_from_bundle(shards, self.fraction * spec.fraction, spec.secret)
        drawn, counts = np.concatenate([np.zeros(0, np.int64), *by_shard]), [len(part) for part in by_shard]
        if not len(drawn):
            return Recorded(AUDITS.empty_table(), {})
        taken = texts.take(drawn)
        rule = self._run(taken)
        logits = rule.logits_BEC.numpy()
        lte = np.zeros((len(logits), 0), np.float32) if rule.lte_BE is None else rule.lte_BE.numpy()
        bounds = taken.bounds
        columns = {
            SHARD: pa.array(np.repeat([*shards], counts), pa.string()),
            ROW: rows[ROW].take(drawn),
            TRUNCATED: rows[TRUNCATED].take(drawn),
            LENGTHS: _lists(bounds, taken.windows.lengths.astype(np.int32)),
            LOGITS: _lists(bounds * logits[0].size, logits.ravel()),
            LTE: _lists(bounds * lte.shape[1], lte.ravel()),
        }
        depth = np.full(len(taken.windows), self._engine.model.shape.layers)
        spent = self._engine.flops.rows(taken.windows.lengths, depth)
        of_shard = np.repeat(np.repeat(np.arange(len(counts)), counts), taken.counts)
        flops = np.bincount(of_shard, spent, minlength=len(counts)).tolist()
        return Recorded(pa.table(columns, schema=AUDITS), {s: f for s, f in zip(shards, flops, strict=True) if f})

    def _run(self, texts: TextRows) -> RecordedExits:
        """Run all windows of these texts through every exit."""
        model = self._engine.model
        rule = RecordedExits(model.exit_layers, len(texts.windows), model.shape.classes, learned=model.lte is not None)
        self._engine.run(texts.windows, rule)
        return rule


def _lists(bounds: np.ndarray, values: np.ndarray) -> pa.ListArray:
    """Cut values into lists at these bounds."""
    return pa.ListArray.from_arrays(pa.array(bounds, pa.int32()), pa.array(values))
