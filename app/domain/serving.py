"""How a model is deployed: on which engine, with which options, and for how long it stays loaded."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

FOREVER: Final = -1.0
LONGEST_SECONDS: Final = 100 * 365 * 24 * 3600
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")


def parse_keep_alive(value: Any) -> float:
    """Seconds from a number or from a text such as `10m` or `1h30m`; anything negative is FOREVER.

    Raises ValueError.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _checked(value)
    text = value.strip() if isinstance(value, str) else ""
    if re.fullmatch(r"-?\d+(\.\d+)?", text):
        return _checked(float(text))
    if not text or _PART.sub("", text.removeprefix("-")):
        raise ValueError(f"{value!r} is no duration; give seconds, a text such as '10m' or '1h30m', or -1 for ever")
    if text.startswith("-"):
        return FOREVER
    return _checked(sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text)))


def _checked(seconds: float) -> float:
    """JSON has numbers beyond every clock, and its readers take NaN and Infinity."""
    if not seconds <= LONGEST_SECONDS:
        raise ValueError(f"a duration has at most {LONGEST_SECONDS} seconds, a hundred years; give -1 for ever")
    return float(seconds) if seconds >= 0 else FOREVER


KeepAlive = Annotated[float, BeforeValidator(parse_keep_alive)]


class Speculation(BaseModel, extra="forbid", frozen=True):
    """Speculative decoding: tokens are guessed cheaply and checked together. https://arxiv.org/abs/2211.17192

    `ngram` looks the guess up in the text so far; `draft` takes it from `draft_model`, a smaller model with the
    same vocabulary.
    """

    type: Literal["ngram", "draft"]
    draft_model: str | None = None
    tokens: int = Field(default=8, ge=1, le=64)

    @model_validator(mode="after")
    def _draft_has_a_model(self) -> Speculation:
        if (self.type == "draft") != (self.draft_model is not None):
            raise ValueError("`draft_model` goes with the type `draft`, and only with it")
        return self


class RemoteModel(BaseModel, extra="forbid", frozen=True):
    """A model on a server of BITMILL_REMOTES; `model` is its name there."""

    server: str
    model: str


class DeploymentOptions(BaseModel, extra="forbid", frozen=True):
    """What is left out is chosen by Bitmill: from the settings, the model and the machine."""

    engine: str | None = None
    context_length: int | None = Field(default=None, ge=64)
    slots: int | None = Field(default=None, ge=1, le=1024)
    threads: int | None = Field(default=None, ge=0, le=1024)
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    speculation: Speculation | None = None
    remote: RemoteModel | None = None
    adapter_rank: int | None = Field(default=None, ge=1, le=512)
    keep_alive: KeepAlive | None = None
    pinned: bool = False

    @model_validator(mode="after")
    def _remote_has_no_engine(self) -> DeploymentOptions:
        if self.remote is not None and self.engine not in (None, "remote"):
            raise ValueError(f"a remote model is served by the engine 'remote', not {self.engine!r}")
        if self.engine == "remote" and self.remote is None:
            raise ValueError("the engine 'remote' needs `remote` with a server and a model")
        return self

    @property
    def loading(self) -> dict[str, Any]:
        """The options that take a new load to change."""
        return self.model_dump(exclude={"keep_alive", "pinned"})


class CreateDeployment(DeploymentOptions):
    """The body of POST /v1/deployments: a model, its options, and whether to wait until it is loaded."""

    model: str = Field(min_length=1, max_length=700)
    wait: bool = True

    @property
    def options(self) -> DeploymentOptions:
        given = {name: getattr(self, name) for name in DeploymentOptions.model_fields}
        return DeploymentOptions.model_validate(given)
