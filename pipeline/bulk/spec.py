"""All that the stages of a bulk run need, as plain values."""

from dataclasses import dataclass

from pipeline.calibration.audit import AuditSpec
from pipeline.corpus.columns import Columns
from pipeline.corpus.tokenize import TokenizerSpec
from pipeline.engine.config import EngineConfig
from pipeline.output.parts import Output


@dataclass(frozen=True, kw_only=True)
class ClassifySpec:
    """All that the stages need; plain values that travel to every worker."""

    columns: Columns
    tokenizer: TokenizerSpec
    model: str
    weights: str
    """Their `models.digest`: an actor that finds others refuses to start."""
    engine: EngineConfig
    output: Output
    results: tuple[str, ...]
    """Columns of the output beside the kept ones, of `schema.RESULTS`."""
    audit: AuditSpec | None = None
