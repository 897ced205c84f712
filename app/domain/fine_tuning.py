"""What a fine-tuning job is asked for: OpenAI's request, and what Bitmill adds to it under `bitmill`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, Field, StringConstraints, ValidationError, field_validator, model_validator

from app.domain.artifacts import QualityOptions
from app.domain.files import FILE_ID

MAX_SEED: Final = 2**31 - 1


class Adapter(StrEnum):
    """What is trained."""

    QLORA = "qlora"  # low-rank matrices beside a base whose weights have 4 bits (arXiv:2305.14314)
    LORA = "lora"  # the same beside the base as it is (arXiv:2106.09685)
    FULL = "full"  # every weight
    QAT = "qat"  # every weight, rounded in the forward pass as the result will be


class Scheme(StrEnum):
    """The grid that quantization-aware training rounds to."""

    INT4 = "int4"  # integer weights in groups, 16-bit activations (W4A16)
    INT8_INT4 = "int8-int4"  # the same weights, and activations of 8 bits with a scale per token (W4A8)


class BaseQuantization(BaseModel, extra="forbid", frozen=True):
    """How QLoRA's base is stored while it trains: bitsandbytes, 4 bits."""

    type: Literal["nf4", "fp4"] = "nf4"
    double_quant: bool = True


class WeightGrid(BaseModel, extra="forbid", frozen=True):
    """What quantization-aware training rounds to."""

    type: Scheme = Scheme.INT4
    group_size: Literal[16, 32, 64, 128, 256] = Field(
        default=32, description="Weights of a row that share a scale. It must divide every row."
    )


# What the field `quantization` holds for each adapter that has one.
QUANTIZATIONS: Final[dict[Adapter, type[BaseModel]]] = {Adapter.QLORA: BaseQuantization, Adapter.QAT: WeightGrid}


class TrainingOptions(BaseModel, extra="forbid", frozen=True):
    """The `bitmill` object of a fine-tuning job: what OpenAI's request has no words for."""

    adapter: Adapter = Adapter.QLORA
    rank: int = Field(default=16, ge=1, le=1024, description="Columns of the low-rank matrices (lora, qlora).")
    alpha: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="The update is scaled by alpha / rank; twice the rank where it is null.",
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="On the adapter's input (lora, qlora).")
    target_modules: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        default="all-linear", description="Ends of the names of the layers that get an adapter, such as q_proj."
    )
    quantization: dict[str, Any] = Field(
        default_factory=dict,
        description="Of qlora's base: type nf4 or fp4, double_quant. Of qat: type int4 or int8-int4, group_size.",
    )
    max_steps: int | None = Field(default=None, ge=1, description="Ends the training even within an epoch.")
    sequence_length: int = Field(default=512, ge=8, le=131072, description="Tokens; longer examples are cut.")
    warmup: float = Field(default=0.05, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    gradient_checkpointing: bool = Field(
        default=False, description="Compute activations twice rather than keep them: slower, in less memory."
    )
    merge: bool = Field(
        default=False,
        description="Store the full model, the adapter added to the original's weights, in place of the adapter "
        "(lora, qlora).",
    )
    quality: QualityOptions = QualityOptions()

    @model_validator(mode="after")
    def _consistent(self) -> TrainingOptions:
        if self.adapter in QUANTIZATIONS:
            _require_valid(QUANTIZATIONS[self.adapter], self.quantization)
        elif self.quantization:
            raise ValueError(f"quantization belongs to the adapters qlora and qat; {self.adapter} has none")
        if self.merge and not self.is_low_rank:
            raise ValueError(f"merge belongs to the adapters lora and qlora; {self.adapter} trains the model itself")
        return self

    @property
    def base_quantization(self) -> BaseQuantization:
        return BaseQuantization.model_validate(self.quantization)

    @property
    def grid(self) -> WeightGrid:
        return WeightGrid.model_validate(self.quantization)

    @property
    def is_low_rank(self) -> bool:
        return self.adapter in (Adapter.LORA, Adapter.QLORA)

    @property
    def scale(self) -> float:
        """The alpha that counts."""
        return self.alpha if self.alpha is not None else 2.0 * self.rank


def _require_valid(model: type[BaseModel], given: dict[str, Any]) -> None:
    """Raises ValueError, which names the field inside `quantization`."""
    try:
        model.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, ("quantization", *first["loc"])))
        raise ValueError(f"{field}: {first['msg']}, not {first['input']!r}") from error


class Hyperparameters(BaseModel, extra="forbid", frozen=True):
    """OpenAI's. `auto` lets Bitmill choose."""

    n_epochs: Literal["auto"] | Annotated[int, Field(ge=1, le=1000)] = "auto"
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = "auto"
    learning_rate_multiplier: Literal["auto"] | Annotated[float, Field(gt=0, le=1000)] = "auto"


class Supervised(BaseModel, extra="forbid", frozen=True):
    hyperparameters: Hyperparameters = Hyperparameters()


class TrainingMethod(BaseModel, extra="forbid", frozen=True):
    type: Literal["supervised"] = "supervised"
    supervised: Supervised = Supervised()


FileId = Annotated[str, StringConstraints(max_length=64)]
Suffix = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


class FineTuningRequest(BaseModel, extra="forbid", frozen=True):
    """The body of POST /v1/fine_tuning/jobs, in OpenAI's words."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=512)]
    training_file: FileId = Field(description="The id of an uploaded file with purpose fine-tune.")
    validation_file: FileId | None = None
    suffix: Suffix | None = Field(default=None, description="A part of the new model's name.")
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED, description="0 where it is null.")
    method: TrainingMethod | None = None
    hyperparameters: Hyperparameters | None = Field(default=None, description="The older place of method's.")
    metadata: dict[str, str] | None = Field(default=None, max_length=16)
    integrations: list[dict[str, Any]] | None = Field(default=None, max_length=0, description="None are offered.")
    bitmill: TrainingOptions = TrainingOptions()

    @field_validator("training_file", "validation_file")
    @classmethod
    def _is_upload(cls, value: str | None) -> str | None:
        if value is not None and not FILE_ID.fullmatch(value):
            raise ValueError(f"{value!r} is no file's id; upload the file (POST /v1/files, purpose fine-tune) first")
        return value

    @property
    def wanted(self) -> Hyperparameters:
        """From wherever they were given."""
        return self.method.supervised.hyperparameters if self.method else self.hyperparameters or Hyperparameters()


class TrainingPlan(BaseModel, frozen=True):
    """The request with every `auto` decided: what the training reads."""

    epochs: int
    batch_size: int
    learning_rate: float
    steps: int
    seed: int
    options: TrainingOptions


# Peak learning rates at a multiplier of 1. Low-rank matrices begin at zero and take ten times that of the weights.
LEARNING_RATES: Final[dict[Adapter, float]] = {
    Adapter.QLORA: 2e-4,
    Adapter.LORA: 2e-4,
    Adapter.FULL: 2e-5,
    Adapter.QAT: 2e-5,
}
AUTO_EPOCHS: Final = 3
# As OpenAI words it, the batch grows with the data; small enough for a CPU here.
AUTO_BATCH_SIZES: Final = ((10_000, 16), (1_000, 8), (100, 4))


def plan(request: FineTuningRequest, examples: int) -> TrainingPlan:
    """Decides what was left open. `examples` is the number of training examples."""
    wanted = request.wanted
    epochs = AUTO_EPOCHS if wanted.n_epochs == "auto" else wanted.n_epochs
    batch = _batch_size(examples) if wanted.batch_size == "auto" else min(wanted.batch_size, examples)
    multiplier = 1.0 if wanted.learning_rate_multiplier == "auto" else wanted.learning_rate_multiplier
    steps = epochs * -(-examples // batch)
    return TrainingPlan(
        epochs=epochs,
        batch_size=batch,
        learning_rate=LEARNING_RATES[request.bitmill.adapter] * multiplier,
        steps=min(steps, request.bitmill.max_steps or steps),
        seed=request.seed or 0,
        options=request.bitmill,
    )


def _batch_size(examples: int) -> int:
    return next((size for least, size in AUTO_BATCH_SIZES if examples >= least), 2 if examples > 1 else 1)


class SampleLoss(BaseModel, frozen=True):
    """The loss on a few examples before and after the training, in nats per learned token.

    They are the first of `file`, `validation` where there is one, else `training`. Both figures are of the model as it
    trained: beside a base in 4 bits, say, or rounded in the forward pass.
    """

    file: Literal["training", "validation"]
    examples: int
    tokens: int
    before: float
    after: float


class TrainingReport(BaseModel, frozen=True):
    """What a training did. `tensor_types` counts what was written by its type, as a quantization's report does.

    `trained_tokens` are those that were read in all epochs together. `truncated_examples` were longer than the sequence
    length. `metrics` are the last that were seen: train_loss, train_mean_token_accuracy, and with a validation file
    valid_loss and valid_mean_token_accuracy.
    """

    steps: int
    epochs: float
    examples: int
    truncated_examples: int
    trained_tokens: int
    trained_parameters: int
    metrics: dict[str, float]
    sample: SampleLoss
    tensor_types: dict[str, int]
    parameter_count: int
    weight_bytes: int

    @property
    def bits_per_weight(self) -> float:
        return self.weight_bytes * 8 / self.parameter_count


class TrainingProof(BaseModel, frozen=True):
    """What a result was measured to be when it had been loaded back. Losses are in nats per learned token.

    `loss` is measured on the examples of the report's sample, `trained_loss` is what the training saw on them at its
    end. `base_loss` is the base's. `served_loss` is that of an adapter on the base in 16 bits, where the training had
    it on one of 4. `generated_text` continues the prompt of the first example, whose answer is `expected_text`.
    """

    file: Literal["training", "validation"]
    examples: int
    tokens: int
    loss: float
    trained_loss: float
    base_loss: float
    served_loss: float | None = None
    accuracy: float
    base_accuracy: float
    prompt_text: str
    expected_text: str
    generated_text: str
    base_text: str
