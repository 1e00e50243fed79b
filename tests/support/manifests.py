"""What infra/ describes: its documents, and the pods in them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.support.jobs import REPOSITORY

INFRA = REPOSITORY / "infra"
KUBERNETES = INFRA / "kubernetes"


def documents(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text()))


def pods() -> Iterator[dict[str, Any]]:
    """Every pod that a manifest describes, as a manifest of its own."""
    for path in sorted(KUBERNETES.glob("*.yaml")):
        for manifest in documents(path):
            for number, spec in enumerate(spec for spec in found(manifest, "spec") if "containers" in spec):
                yield {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"{path.stem}-{number}"}, "spec": spec}


def found(tree: Any, key: str) -> Iterator[Any]:
    """Yield what stands under a key, anywhere in a document."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name == key:
                yield value
            yield from found(value, key)
    elif isinstance(tree, list):
        for value in tree:
            yield from found(value, key)
