"""Make the request of a labelling: the teacher and its logits."""

import argparse

from jobs.work import bulk
from models.exits.criterion import Criterion
from pipeline.bulk.run import BulkRequest
from pipeline.calibration.targets import label_thresholds
from pipeline.corpus.columns import source_of
from pipeline.engine.config import EngineConfig
from pipeline.errors import InputError
from pipeline.schema import ID, LOGITS, PREDICTED, TRUNCATED, UNCERTAINTY


def request_of(args: argparse.Namespace) -> BulkRequest:
    """Read the model and build the request; raise UserError for what cannot be met."""
    named = {source_of(keep) for keep in args.keep}
    texts = (
        [] if args.no_text else [name for name in (args.text_column, args.pair_column) if name and name not in named]
    )
    for name in texts:
        if "=" in name:
            raise InputError("text_column", f"{name}: to write it, name it by --keep {name}=NAME; else --no-text")
    model = bulk.open_model(args)
    predictions = PREDICTED[model.meta.task][:1] + (() if model.meta.regression else (UNCERTAINTY,))
    criterion = Criterion(label_thresholds=label_thresholds(None, model.meta))
    return bulk.request_of(
        args,
        model=model,
        engine=EngineConfig(criterion=criterion, dtype=args.dtype),
        results=(ID, LOGITS, *predictions, TRUNCATED),
        keep=tuple(dict.fromkeys([*texts, *args.keep])),
    )
