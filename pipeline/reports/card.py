"""The model card: README.md of a model directory, as the Hub shows it.

Each job that makes or measures a model writes a section of its own, between two comments; a section that is written again takes
the place of the one before, and all else in the file, such as what its owner wrote, stays as it is.

    <!-- offramp: calibration -->
    ## Calibration
    ...
    <!-- offramp: end of calibration -->
"""

import re
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import ModelCardData

from models.early_exit import EarlyExitModel
from models.exits.task import Task
from pipeline.errors import printable
from pipeline.storage.base import translate_errors
from pipeline.storage.local import write_atomically

CARD = "README.md"
"""Name of the card, beside the model."""


def write_section(directory: Path, model: EarlyExitModel, title: str, text: str, *, base: str | None = None) -> None:
    """Put a section into the card of a model directory, which is begun if there is none.

    `base` is the Hub's name of the model that this one was made from, for a new card's metadata. What is in the file already
    may be in any encoding. Raises StorageError if it cannot be read or written.
    """
    with translate_errors(str(directory / CARD)):
        _write_section(directory / CARD, model, title, text, base)


def _write_section(path: Path, model: EarlyExitModel, title: str, text: str, base: str | None) -> None:
    name = title.lower()
    card = path.read_bytes() if path.exists() else _new_card(path.resolve().parent.name, model, base).encode()
    begin, end = f"<!-- offramp: {name} -->".encode(), f"<!-- offramp: end of {name} -->".encode()
    section = b"%s\n## %s\n\n%s\n%s" % (begin, title.encode(), text.strip().encode(), end)
    found = re.search(re.escape(begin) + b".*?" + re.escape(end), card, re.DOTALL)
    card = card[: found.start()] + section + card[found.end() :] if found else b"%s\n\n%s\n" % (card.rstrip(), section)
    write_atomically(str(path), card)


def facts_table(facts: Mapping[str, object]) -> str:
    """Return facts by name as a Markdown table of two columns."""
    cells = [(printable(str(value)).replace("|", r"\|") for value in fact) for fact in facts.items()]
    return "\n".join(["| | |", "| --- | --- |", *("| " + " | ".join(row) + " |" for row in cells)])


def hub_name(address: str) -> str | None:
    """Return the name by which the Hub knows a model, `owner/name` or `name`; None for a directory or another address."""
    known = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", address) is not None and not Path(address).exists()
    return address if known else None


def _new_card(name: str, model: EarlyExitModel, base: str | None) -> str:
    """Return a card without sections: metadata, what the model is, and how it is used."""
    data = ModelCardData(
        base_model=base, library_name="offramp", pipeline_tag="text-classification", tags=["early-exit"]
    )
    exits = ", ".join(map(str, model.exit_layers[:-1]))
    early = f" A {model.branch_head} head after layers {exits} lets easy texts leave there." if exits else ""
    kind = "labels, any number of them a text" if model.task is Task.LABELS else "classes"
    predicts = "one value" if model.regression else f"{model.shape.classes:,} {kind}: {', '.join(model.labels[:20])}"
    more = ", …" if model.shape.classes > 20 else ""
    return f"""---
{data.to_yaml()}
---

# {printable(name)}

A text classifier of the family `{model.config.model_type}`: {model.shape.layers} layers, hidden size {model.shape.hidden:,}, \
{printable(predicts)}{more}.{early}
offramp runs it with early exits; transformers opens the same directory as the plain model.

```python
from offramp import Classifier

classify = Classifier.from_pretrained("{printable(name)}", speed=0.3)
```
"""
