"""All that the stages of a bulk run need, as plain values."""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Self

from pipeline.calibration.audit import AuditSpec
from pipeline.corpus.columns import Columns
from pipeline.corpus.tokenize import TokenizerSpec
from pipeline.engine.config import EngineConfig
from pipeline.identity import ModelIdentity
from pipeline.output.parts import Output


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifySpec:
    """What the stages do with every bundle; plain values that travel to every worker."""

    columns: Columns
    tokenizer: TokenizerSpec
    model: str
    """Directory, hub id or s3:// address, the same on every machine."""
    identity: ModelIdentity
    """What the run began with; an actor that finds other weights refuses to start."""
    precision: str
    """What the run computes in, by `models.precision.precision_on`; an actor that would compute in another refuses to start."""
    config: SimpleNamespace
    """The configuration by `models.directory.config.plain_config`, read once, so that actors do without transformers."""
    engine: EngineConfig
    output: Output
    results: tuple[str, ...]
    """Columns of the output beside the kept ones, of `schema.RESULTS`."""
    audit: AuditSpec | None = None
    """What actors count of their own predictions; None if they do not."""
    bundle_rows: int | None = None
    """Rows of a bundle, about; None is `bundle.BUNDLE_ROWS` of the device."""

    def with_secret(self, secret: str) -> Self:
        """Return it with the secret of a run, by which its audit, if it has one, draws rows."""
        return self if self.audit is None else replace(self, audit=replace(self.audit, secret=secret))
