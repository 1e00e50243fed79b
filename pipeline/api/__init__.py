"""Classify huge text corpora with early-exit transformers on Ray.

    from offramp import Classifier, open_results

    Classifier.from_pretrained("my-model", target_speedup=2)(["the room was clean"]).labels
    open_results("out").to_table().to_pandas()

This is what `import offramp` gives. A name is loaded when it is first used, so the import itself costs nothing.
"""

from typing import TYPE_CHECKING, Any

from pipeline.version import __version__

if TYPE_CHECKING:
    from models.early_exit import EarlyExitModel
    from models.errors import UserError
    from pipeline.api.classifier import Classifier
    from pipeline.engine.engine import Engine
    from pipeline.output.results import open_rejects, open_results

__all__ = ["Classifier", "EarlyExitModel", "Engine", "UserError", "__version__", "open_rejects", "open_results"]


def __getattr__(name: str) -> Any:
    """Load a public name (PEP 562). These are statements, and no table of strings, since the wheel rewrites statements."""
    match name:
        case "Classifier":
            from pipeline.api.classifier import Classifier

            return Classifier
        case "EarlyExitModel":
            from models.early_exit import EarlyExitModel

            return EarlyExitModel
        case "Engine":
            from pipeline.engine.engine import Engine

            return Engine
        case "UserError":
            from models.errors import UserError

            return UserError
        case "open_results" | "open_rejects":
            from pipeline.output import results

            return getattr(results, name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
