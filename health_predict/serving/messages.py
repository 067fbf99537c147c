"""What the service answers, as types: the shapes that `openapi` publishes and tests hold it to.

Answers themselves are plain dicts: to validate what was just made would cost more than to make it.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0, le=1)]


class Message(BaseModel):
    """A shape that holds what it says and nothing else."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Reason(Message):
    """Why a request, a row or a field was refused, or what to know of its answer."""

    field: str | None = Field(description="Published name of the field; null: the whole.")
    message: str = Field(description="What is asked of it, in words.")


class Refusal(Message):
    """A request that was not answered; what was sent is never repeated."""

    detail: list[Reason] = Field(min_length=1, description="One entry a field.")


class Model(Message):
    """Which model answered."""

    name: str = Field(description="Name in the model registry.")
    version: str = Field(description="Version in the model registry.")
    run_id: str = Field(description="MLflow run that trained it.")
    data: str = Field(description="What it learned from.")
    data_fingerprint: str | None = Field(description="Digest of its training rows.")
    git_revision: str | None = Field(description="Revision of the code that trained it.")
    bento_tag: str | None = Field(description="The Bento it is served from.")
    image_digest: str | None = Field(description="The image it runs from; null: no image.")


class Contribution(Message):
    """What one field adds to the score."""

    field: str = Field(
        description="Published name; `medications`: the 23 drugs together; `missing_fields`: how "
        "much was not recorded."
    )
    label: str = Field(description="What the field is.")
    value: str = Field(description="What was given, in words.")
    log_odds: float = Field(description="Natural logarithm of what the odds are multiplied by.")
    effect: str = Field(description="What that means for the risk.")


class Sum(Message):
    """How the score adds up, in log-odds: the first three make the last."""

    baseline: float = Field(description="Log-odds that contributions are counted from.")
    contributions: float = Field(description="Log-odds of all contributions together.")
    calibration: float = Field(description="Log-odds that the calibration moves their sum by.")
    total: float = Field(description="Log-odds of the score.")


class Answer(Message):
    """The answer to one encounter."""

    prediction: Literal[0, 1] = Field(description="1: at or above the model's threshold.")
    probability_score: Probability = Field(description="Probability of readmission.")
    risk_band: str = Field(description="Band of the probability: low, medium or high.")
    warnings: list[Reason] = Field(description="Fields whose level the model does not know.")
    model: Model = Field(description="The model that answered.")
    contributions: list[Contribution] | None = Field(
        default=None, description="With `explain=true`: largest first."
    )
    log_odds: Sum | None = Field(
        default=None, description="With `explain=true`: how the score adds up."
    )


class Record(Message):
    """The answer to one row of a batch; one that was refused has errors and no score."""

    row: int = Field(ge=1, description="Row of the batch, from 1.")
    prediction: Literal[0, 1] | None = Field(description="1: at or above the model's threshold.")
    probability_score: Probability | None = Field(description="Probability of readmission.")
    risk_band: str | None = Field(description="Band of the probability: low, medium or high.")
    model_version: str = Field(description="Version of the model that answered.")
    warnings: list[Reason] = Field(description="Fields whose level the model does not know.")
    errors: list[Reason] = Field(description="Why the row was refused.")


class Health(Message):
    """Whether a model is loaded."""

    status: Literal["healthy", "loading"] = Field(description="In a word.")
    model_loaded: bool = Field(description="Whether requests are scored.")
    preprocessor_loaded: bool = Field(description="The same: both are one compiled scorer.")
    version: str | None = Field(description="Version of the model; null: none is loaded.")


class HeldOut(BaseModel):
    """Scores of the model on people it did not learn from, those that a service needs or shows."""

    n: int = Field(ge=0, description="Encounters.")
    positives: int = Field(ge=0, description="Encounters followed by a readmission.")
    auc: Probability = Field(description="Area under the ROC curve.")
    brier: Probability = Field(description="Brier score.")


class Facts(BaseModel):
    """What is known of the served model; what its training noted beside stands here too."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(description="Name in the model registry.")
    version: str = Field(description="Version in the model registry.")
    run_id: str = Field(description="MLflow run that trained it.")
    data: str = Field(description="What it learned from.")
    threshold: Probability = Field(description="Probability from which a prediction is 1.")
    risk_bands: dict[str, Probability] = Field(description="Lower end of each band, ascending.")
    image_digest: str | None = Field(description="The image it runs from; null: no image.")
    bento_tag: str | None = Field(default=None, description="The Bento it is served from.")
    window: str = Field(default="", description="Batches it learned from.")
    trained_at: str = Field(default="", description="When it was trained: ISO 8601.")
    intended_use: str = Field(default="", description="What it is for and what not.")
    test: HeldOut | None = Field(default=None, description="How it did on held-out encounters.")
