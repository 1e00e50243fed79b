"""Poison rows for tests: with this folder on PYTHONPATH, some rows make the stages raise or kill their process.

Python imports this module by itself when it starts, so it reaches Ray's workers without a line in the product.

    a text that contains  KILL-READ                        when it is read
    a text that contains  RAISE-TOKENIZE | KILL-TOKENIZE   when it is tokenized
    a row of              61 tokens                        when it is classified
    a row of              62 tokens                        then too: as a GPU does, whose errors are sticky
"""

import importlib.abc
import importlib.machinery
import os
import sys
from types import ModuleType

RAISING_TOKENS, UPSETTING_TOKENS = 61, 62


class Poisoner(importlib.abc.MetaPathFinder):
    """Lets a module load as usual and then wraps one of its methods."""

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name not in POISONERS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            POISONERS[name](module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def poison_reader(module: ModuleType) -> None:
    check = module.check_rows

    def poisoned(file, columns, raw, schema):  # type: ignore[no-untyped-def]
        if any(b"KILL-READ" in text for text in raw.columns["text"] if isinstance(text, bytes)):
            os._exit(9)
        return check(file, columns, raw, schema)

    vars(module)["check_rows"] = poisoned


def poison_tokenizer(module: ModuleType) -> None:
    tokenize = module.Tokenizer.__call__

    def poisoned(self, texts, pairs=None):  # type: ignore[no-untyped-def]
        if any("KILL-TOKENIZE" in text for text in texts):
            os._exit(9)
        if any("RAISE-TOKENIZE" in text for text in texts):
            raise ValueError("this text cannot be tokenized")
        return tokenize(self, texts, pairs)

    module.Tokenizer.__call__ = poisoned


def poison_engine(module: ModuleType) -> None:
    run = module.Engine.run

    def poisoned(self, rows, *rules):  # type: ignore[no-untyped-def]
        if (rows.lengths == UPSETTING_TOKENS).any():
            raise module.torch.AcceleratorError("CUDA error: device-side assert triggered")
        if (rows.lengths == RAISING_TOKENS).any():
            raise ValueError("this row cannot be classified")
        return run(self, rows, *rules)

    module.Engine.run = poisoned


POISONERS = {
    "pipeline.corpus.reader": poison_reader,
    "pipeline.corpus.tokenize": poison_tokenizer,
    "pipeline.engine.engine": poison_engine,
}
sys.meta_path.insert(0, Poisoner())
