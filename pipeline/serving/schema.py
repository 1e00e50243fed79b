"""What goes over the wire: requests and responses of the server, and its OpenAPI page."""

import heapq
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.calibration.guarantees import CONFIDENCE
from pipeline.calibration.targets import Target, by_name

NAMES_SHOWN, NAME_CHARACTERS = 3, 40
"""How many unknown fields a refusal names, and the most that it repeats of each."""
Fraction = Annotated[float, Field(gt=0, lt=1)]


class ClassifyRequest(BaseModel):
    """One text, a pair of texts, or a list of either."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        json_schema_extra={"examples": [{"text": "the room was clean", "speed": 0.3}, {"text": ["one", "two"]}]},
    )

    # fail_fast: a list of a million numbers is one mistake and not a million.
    text: str | Annotated[list[str], Field(min_length=1, fail_fast=True)] = Field(
        description="a text, or a list of texts"
    )
    pair: str | Annotated[list[str], Field(fail_fast=True)] | None = Field(
        None, description="second texts, for pairs: as many as there are texts"
    )
    speed: float | None = Field(
        None, ge=0, le=1, description="exit where the uncertainty is at most this: 0 is full depth, 1 is fastest"
    )
    target_speedup: float | None = Field(
        None,
        ge=1,
        description="in place of speed, for a calibrated model: the factor by which to reduce FLOPs; 2 is half of full depth's",
    )
    max_disagreement: Fraction | None = Field(
        None,
        description="in place of speed, for a calibrated model: the fastest thresholds at which at most this fraction of "
        f"predictions differs from full depth, with confidence {CONFIDENCE:g}",
    )
    max_missed: Fraction | dict[str, Fraction] | None = Field(
        None,
        description="likewise, beside or in place of max_disagreement: of the rows that full depth gives a class, at most this "
        'fraction gets another answer; one number for every class, or {"spam": 0.02}',
    )
    max_quality_loss: Fraction | None = Field(
        None,
        description="likewise: accuracy at most so far below that of full depth, by the labels that the calibration had",
    )
    probabilities: bool = Field(
        False, description="return the probabilities of all classes, or labels, too; of a model of values, its sigmoid"
    )

    @model_validator(mode="before")
    @classmethod
    def _know_all_names(cls, body: Any) -> Any:
        """Refuse unknown names as one mistake: four megabytes of them would be answered by fifteen, and take a second."""
        if isinstance(body, dict) and (unknown := body.keys() - cls.model_fields.keys()):
            shown = ", ".join(repr(name[:NAME_CHARACTERS]) for name in heapq.nsmallest(NAMES_SHOWN, unknown))
            others = f" and {len(unknown) - NAMES_SHOWN:,} others" if len(unknown) > NAMES_SHOWN else ""
            raise ValueError(f"{shown}{others} are no fields of a request")
        return body

    def target(self) -> Target:
        """Return what is asked of the exits; raise InputError for fields that exclude each other."""
        return Target(
            speed=self.speed,
            target_speedup=self.target_speedup,
            max_disagreement=self.max_disagreement,
            max_missed=by_name(self.max_missed),
            max_quality_loss=self.max_quality_loss,
        )


class Result(BaseModel):
    """The prediction for one text; a model of values returns `value` in place of label, label_id and score.

    A model of label sets returns `labels` in place of label and label_id.
    """

    label: str | None = None
    label_id: int | None = None
    labels: list[str] | None = Field(None, description="names of the predicted labels, for a model of label sets")
    score: float | None = Field(
        None,
        description="probability of the predicted class; for label sets, of the least probable decision on a label",
    )
    value: float | None = None
    probabilities: list[float] | None = None
    probability: float | None = Field(
        None, description="sigmoid of the value, on request: for a classifier of one logit"
    )
    exit_layer: int = Field(description="layers that the text went through")
    uncertainty: float = Field(description="uncertainty at that exit, in [0, 1]")
    truncated: bool = Field(description="whether the text was longer than the model reads")


class ClassifyResponse(BaseModel):
    """One result for each text, in order."""

    results: list[Result]
    note: str | None = Field(None, description="why all texts ran at full depth, where the limits allow nothing faster")


class Problem(BaseModel):
    """Why a request gets no results."""

    detail: str
