"""Make the request of a labelling: the teacher and its logits."""

import argparse

from jobs.work import bulk
from pipeline.bulk.run import BulkRequest
from pipeline.engine.config import EngineConfig
from pipeline.schema import ID, LABEL, LOGITS, TRUNCATED, UNCERTAINTY, VALUE


def request_of(args: argparse.Namespace) -> BulkRequest:
    """Read the model and build the request; raise UserError for what cannot be met."""
    texts = [] if args.no_text else [name for name in (args.text_column, args.pair_column) if name]
    model = bulk.open_model(args)
    predictions = (VALUE,) if model.meta.regression else (LABEL, UNCERTAINTY)
    return bulk.request_of(
        args,
        model=model,
        engine=EngineConfig(dtype=args.dtype),
        results=(ID, LOGITS, *predictions, TRUNCATED),
        keep=tuple(dict.fromkeys([*texts, *args.keep])),
    )
