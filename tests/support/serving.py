"""An engine and limits for tests of the server."""

from models.early_exit import EarlyExitModel
from models.exits.criterion import Criterion
from pipeline.engine.config import EngineConfig
from pipeline.engine.engine import Engine
from pipeline.engine.loaded import LoadedModel
from pipeline.serving.limits import RequestLimits
from tests.support.models import new_model

LIMITS = RequestLimits(rows=50, body_bytes=20_000, body_seconds=5.0, answer_seconds=30.0)


def new_engine(criterion: Criterion, model: EarlyExitModel | None = None) -> Engine:
    return Engine(LoadedModel(model or new_model(), EngineConfig(criterion=criterion, dtype="fp32", token_budget=64)))
