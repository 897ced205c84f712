"""What an engine makes of the contract, as data: what it cannot honour, and what it understands beyond it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from pydantic import BaseModel

from app.domain.errors import UnsupportedField
from workers.serving.contract.chat import ChatCompletionRequest
from workers.serving.contract.completions import CompletionRequest, EmbeddingsRequest
from workers.serving.contract.fields import Extras

NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
EXTRA_FIELDS: Final = frozenset(Extras.model_fields)

# Sampling beyond OpenAI's fields that is common to nearly every engine.
COMMON_SAMPLING: Final = frozenset({"top_k", "min_p"})


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineContract:
    """`refuses` maps each field to what to do instead; "media" and "echo+logprobs" stand for uses of a field."""

    extras: frozenset[str] = frozenset()
    refuses: Mapping[str, str] = field(default_factory=lambda: NOTHING)

    def check(self, request: BaseModel, *, engine: str) -> None:
        """Raises UnsupportedField with the name of the first field that this engine cannot honour."""
        for name in sorted(request.model_fields_set & EXTRA_FIELDS - self.extras):
            raise UnsupportedField(
                f"the engine {engine!r} does not know `{name}`, a field beyond OpenAI's; leave it out", param=name
            )
        for use, param in _uses(request):
            if use in self.refuses:
                raise UnsupportedField(
                    f"the engine {engine!r} cannot honour `{param}`{_how(use)}: {self.refuses[use]}", param=param
                )


def _uses(request: BaseModel) -> Iterator[tuple[str, str]]:
    """What a request makes use of, each with the field at fault if an engine cannot honour it."""
    for name in sorted(request.model_fields_set - EXTRA_FIELDS):
        yield name, name
    if isinstance(request, CompletionRequest) and request.echo and request.logprobs is not None:
        yield "echo+logprobs", "echo"
    if isinstance(request, ChatCompletionRequest) and any(message.media for message in request.messages):
        yield "media", "messages"
    if isinstance(request, ChatCompletionRequest) and any(message.addresses for message in request.messages):
        yield "addresses", "messages"


def _how(use: str) -> str:
    return HOW.get(use, "")


HOW: Final = {
    "echo+logprobs": " together with logprobs",
    "media": " with images, sound or files",
    "addresses": " with addresses to fetch from",
}
NO_MEDIA: Final = "models answer to text only here; send parts of the type 'text'"

LLAMA_CPP: Final = EngineContract(
    extras=COMMON_SAMPLING
    | {
        "cache_prompt", "chat_template_kwargs", "dry_allowed_length", "dry_base", "dry_multiplier",
        "dry_penalty_last_n", "dry_sequence_breakers", "dynatemp_exponent", "dynatemp_range", "grammar", "id_slot",
        "ignore_eos", "mirostat", "mirostat_eta", "mirostat_tau", "repeat_last_n", "repeat_penalty", "samplers",
        "top_n_sigma", "typical_p", "xtc_probability", "xtc_threshold",
    },
    refuses={
        "echo+logprobs": "its log-probabilities begin after the prompt; ask for one of the two, or serve the model "
        "from safetensors",
        "media": NO_MEDIA,
        "addresses": NO_MEDIA,
        "reasoning_effort": "set what the model's template knows through `chat_template_kwargs`",
    },
)  # fmt: skip

TRANSFORMERS: Final = EngineContract(
    extras=COMMON_SAMPLING | {"chat_template_kwargs", "repetition_penalty"},
    refuses={
        "media": NO_MEDIA,
        "addresses": NO_MEDIA,
        "reasoning_effort": "set what the model's template knows through `chat_template_kwargs`",
    },
)

VLLM: Final = EngineContract(
    extras=COMMON_SAMPLING
    | {
        "bad_words", "chat_template_kwargs", "ignore_eos", "include_stop_str_in_output", "length_penalty",
        "min_tokens", "priority", "repetition_penalty", "skip_special_tokens", "stop_token_ids",
        "structured_outputs", "truncate_prompt_tokens", "use_beam_search",
    },
    # It would fetch them from wherever the serving host can reach.
    refuses={"addresses": "send the content itself, as a `data:` address"},
)  # fmt: skip

# Whatever answers at a remote address says itself what it does not know.
REMOTE: Final = EngineContract(extras=EXTRA_FIELDS)

ROUTE_FIELDS: Final[dict[str, frozenset[str]]] = {
    "/v1/chat/completions": frozenset(ChatCompletionRequest.model_fields),
    "/v1/completions": frozenset(CompletionRequest.model_fields),
    "/v1/embeddings": frozenset(EmbeddingsRequest.model_fields),
}
