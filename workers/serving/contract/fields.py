"""Fields that several routes share.

https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, StringConstraints, Tag

MOST_CHOICES = 16
# Of one request, over all of its prompts: as many answers are held until the last of them is there.
MOST_CHOICES_IN_ALL = 512
# As OpenAI's API.
MOST_INPUTS = 2048
MOST_STOPS = 16
MOST_TOP_LOGPROBS = 20

Text = Annotated[str, StringConstraints(min_length=1)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
TokenId = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,10}$")]


class Strict(BaseModel, extra="forbid", strict=True):
    """Numbers in quotes are no numbers, and a field that is not known is refused."""


def string_or_list(value: Any) -> str:
    """Which member of a union is meant, so that an error speaks of that one. Tags are left out of messages."""
    return "(list)" if isinstance(value, list) else "(string)"


StringOrList = Discriminator(string_or_list)
StopStrings = Annotated[
    Annotated[Text, Tag("(string)")] | Annotated[list[Text], Field(max_length=MOST_STOPS), Tag("(list)")],
    StringOrList,
]


def _kind_of_prompt(value: Any) -> str:
    if not isinstance(value, list):
        return "(string)"
    first = value[0] if value else None
    if isinstance(first, int):
        return "(tokens)"
    return "(token lists)" if isinstance(first, list) else "(strings)"


# What a model reads without a template: one text or several, as text or as token ids.
Prompts = Annotated[
    Annotated[Text, Tag("(string)")]
    | Annotated[list[Text], Field(min_length=1), Tag("(strings)")]
    | Annotated[TokenIds, Tag("(tokens)")]
    | Annotated[list[TokenIds], Field(min_length=1), Tag("(token lists)")],
    Discriminator(_kind_of_prompt),
]


def as_list(prompts: str | list[Any]) -> list[str | list[int]]:
    """Each prompt by itself, whichever of the four shapes it came in."""
    single = isinstance(prompts, str) or isinstance(prompts[0], int)
    return [prompts] if single else prompts  # type: ignore[return-value]


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class Extras(Strict):
    """Fields beyond OpenAI's that some engine understands. Its spec says which."""

    top_k: int | None = Field(default=None, ge=0)
    min_p: float | None = Field(default=None, ge=0, le=1)
    typical_p: float | None = Field(default=None, ge=0, le=1)
    top_n_sigma: float | None = None
    repeat_penalty: float | None = Field(default=None, gt=0)
    repeat_last_n: int | None = Field(default=None, ge=-1)
    repetition_penalty: float | None = Field(default=None, gt=0)
    dynatemp_range: float | None = None
    dynatemp_exponent: float | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    dry_sequence_breakers: list[str] | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    mirostat: int | None = Field(default=None, ge=0, le=2)
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    samplers: list[str] | None = None
    grammar: str | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = Field(default=None, ge=0)
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    structured_outputs: dict[str, Any] | None = None
    bad_words: list[str] | None = None
    length_penalty: float | None = None
    use_beam_search: bool | None = None
    priority: int | None = None
    cache_prompt: bool | None = None
    id_slot: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class GenerationFields(Extras):
    """What chat completions and completions share."""

    model: Text
    keep_alive: float | str | None = None  # the serving host's own
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    n: int = Field(default=1, ge=1, le=MOST_CHOICES)
    stop: StopStrings = Field(default_factory=list)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    logit_bias: dict[TokenId, Annotated[float, Field(ge=-100, le=100)]] = Field(default_factory=dict)
    user: str | None = None  # meant for the provider's own statistics, of which there are none

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage
