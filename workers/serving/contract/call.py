"""One request on its way to an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from app.domain.errors import InvalidParameter
from workers.serving.contract.chat import ChatCompletionRequest
from workers.serving.contract.fields import GenerationFields, Strict
from workers.serving.contract.parsing import REQUESTS, parse_request, without_nulls

# Right to send, and nothing follows from them: nothing is stored, and there is one class of service.
WITHOUT_EFFECT: Final = frozenset(
    {"metadata", "modalities", "prompt_cache_key", "safety_identifier", "service_tier", "store", "verbosity"}
)
FOR_THE_HOST: Final = frozenset({"keep_alive"})


@dataclass(frozen=True, slots=True)
class Call:
    """`body` is what the client sent, less nulls and what no engine needs; `request` is the same, parsed."""

    path: str
    body: dict[str, Any]
    request: Strict

    @property
    def streams(self) -> bool:
        return isinstance(self.request, GenerationFields) and self.request.stream

    @property
    def is_chat(self) -> bool:
        return isinstance(self.request, ChatCompletionRequest)


def parse_call(path: str, body: dict[str, Any]) -> Call:
    """Raises UnsupportedField or InvalidParameter, the same for every engine."""
    request = parse_request(REQUESTS[path], body)
    kept = {name: value for name, value in without_nulls(body).items() if name not in WITHOUT_EFFECT | FOR_THE_HOST}
    return Call(path, kept, request)


def check_logit_bias(given: dict[str, float], vocabulary_size: int) -> None:
    """Raises InvalidParameter for a token that the model does not have."""
    for token in given:
        if int(token) >= vocabulary_size:
            raise InvalidParameter(
                f"`logit_bias` has the key {token!r}; keys are token ids below {vocabulary_size}",
                param="logit_bias",
            )
