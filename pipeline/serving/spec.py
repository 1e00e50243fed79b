"""What a replica needs to serve a model, as plain values, and how it follows from the model. No Ray."""

from dataclasses import dataclass
from types import SimpleNamespace

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.calibration.curve import Calibration, Curve, NotCalibratedError
from pipeline.corpus.tokenize import TokenizerSpec
from pipeline.engine.config import EngineConfig
from pipeline.errors import UserError
from pipeline.identity import ModelIdentity
from pipeline.serving.limits import RequestLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingSpec:
    """All that a replica needs."""

    model: str
    """Hub id, absolute directory, or s3:// address."""
    tokenizer: TokenizerSpec
    config: SimpleNamespace
    """The model's configuration, by `models.directory.config.plain_config`; config.json is read once, for all replicas."""
    identity: ModelIdentity
    """What the server began with; a replica that finds other weights refuses to start."""
    precision: str | None
    """What to compute in, by `models.precision.precision_on`; None is open until it is known where replicas run."""
    engine: EngineConfig
    """Settings of the engine; its criterion decides for requests that set no target."""
    limits: RequestLimits
    batch_tokens: int | None = None
    """Tokens that go to the engine at once; None is MICRO_BATCHES_PER_BATCH for each runner, or GPU_BATCH_TOKENS."""
    queue_tokens: int | None = None
    """Tokens that may wait; None is BATCHES_WAITING batches."""
    token_hash: bytes | None = None
    """Hash of the bearer token that clients need (`auth.hash_token`); None serves everybody."""
    curve: Curve | None = None
    """Curve of the model's calibration, if it has one that fits how it is served."""


def engine_criterion(criterion: Criterion, model: EarlyExitModel) -> Criterion:
    """Return the criterion for an engine whose rows bring their own thresholds: one that evaluates every exit."""
    unjudged = model.regression and criterion.name != "lte"  # values have no entropy
    if criterion.name == "patience" or len(model.exit_layers) == 1 or unjudged:
        return criterion
    return Criterion(name=criterion.name, speed=1.0, label_thresholds=criterion.label_thresholds)


def usable_calibration(
    directory: str, engine: EngineConfig, identity: ModelIdentity, tolerance: float | None = None
) -> Calibration | None:
    """Load the calibration that requests with a target need; return None for a model without one.

    `tolerance` is the distance from which on values differ, where it is asked for.
    Raises UserError if it is about another model or other settings than those of the server.
    """
    try:
        calibration = Calibration.load(directory)
    except NotCalibratedError:
        return None
    calibration.check(identity, engine.dtype)
    if calibration.curve.criterion != engine.criterion.name:
        raise UserError(
            f"it is about {calibration.curve.criterion}, and the model is served by {engine.criterion.name}"
        )
    if tolerance not in (None, calibration.curve.tolerance):
        raise UserError(f"it is about a tolerance of {calibration.curve.tolerance:g}, and {tolerance:g} is asked for")
    if tuple(calibration.curve.label_thresholds) != engine.criterion.label_thresholds:
        raise UserError(
            f"it is about other thresholds of labels than the model is served by, {engine.criterion.describe()}"
        )
    return calibration
