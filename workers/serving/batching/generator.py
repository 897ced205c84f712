"""One model, generating for many requests at once."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    ContinuousBatchingConfig,
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
)
from transformers.generation.continuous_batching.requests import GenerationOutput, RequestStatus

from app.domain.errors import EngineFailed
from app.domain.memory import pass_tokens
from workers.loading import load_causal_lm
from workers.serving.batching.adapters import AdapterAwareProcessors, Adapters, LowRank, request_name
from workers.serving.batching.constraints import Constraint, Grammars
from workers.serving.batching.sampling import (
    PerRequestSampler,
    SamplingSettings,
    SamplingState,
    TokenLogprob,
    token_logprob,
)
from workers.serving.batching.text import TextStream
from workers.serving.batching.tools import Called, format_of

log = logging.getLogger(__name__)

# How the families of models end a turn. Some checkpoints fail to list theirs among the end-of-text tokens.
END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|return|>", "<turn|>")
PAGE_TOKENS = 32
SCORED_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Some more of a choice. The last one has a finish_reason. `tokens` counts all so far."""

    text: str
    tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None
    calls: tuple[Called, ...] = ()


class Choice:
    """One generation as it advances."""

    def __init__(self, text: TextStream, state: SamplingState, ends: frozenset[int]) -> None:
        self.finish_reason: str | None = None
        self._text = text
        self._state = state
        self._ends = ends
        self._seen = 0
        self._told = 0

    def advance(self, output: GenerationOutput) -> Piece | None:
        """What the client may see by now, or None. Raises EngineFailed."""
        constraint = self._state.constraint
        failure = output.error if output.status == RequestStatus.FAILED else constraint and constraint.failure
        if failure:
            log.error("a request failed: %s", failure)
            raise EngineFailed("the engine failed while it generated; its log has the reason")
        end = constraint.length if constraint else None
        tokens = output.generated_tokens[:end]
        text = self._text.push(tokens[self._seen :])
        self._seen = len(tokens)
        if output.is_finished():
            text += self._text.finish()
            self.finish_reason = "stop" if output.generated_tokens[-1] in self._ends else "length"
        if end is not None and self._seen >= end:
            # Nothing may follow but the end, which is not worth another pass.
            text += "" if output.is_finished() else self._text.finish()
            self.finish_reason = "stop"
        if self._text.stopped:
            self.finish_reason = "stop"
        elif self.finish_reason == "stop" and constraint is not None and end is None:
            log.error("an answer ended before its grammar did: %r", self._text)
            raise EngineFailed("the engine ended an answer before it followed its schema; send the request again")
        if not text and self.finish_reason is None:
            return None
        logprobs = tuple(self._state.logprobs[self._told : self._seen])
        self._told = self._seen
        return Piece(text=text, tokens=self._seen, logprobs=logprobs, finish_reason=self.finish_reason)


class BatchedGenerator:
    """Loads a checkpoint and keeps it generating in a thread of the library's."""

    def __init__(
        self, folder: Path, *, context_length: int, cache_tokens: int, slots: int, dtype: str = "auto"
    ) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = load_causal_lm(folder, dtype)
        config = self.model.config.get_text_config()
        self.context_length = min(context_length, getattr(config, "max_position_embeddings", context_length))
        self.vocabulary_size: int = config.vocab_size
        self.ends = end_tokens(self.model, self.tokenizer)
        self.special_tokens = special_tokens(self.tokenizer)
        self.tool_format = format_of(self.tokenizer.chat_template)
        self.grammars = self._grammars()
        # Special tokens have no text in an answer, but for those that calls of tools are written with.
        written = self.tool_format.texts if self.tool_format else ()
        self._hidden = frozenset(token for text, token in self.special_tokens.items() if text not in written)
        self.sampling_defaults = sampling_defaults(self.model.generation_config)
        self.sampler = PerRequestSampler()
        self.adapters = Adapters(self.model)
        self._scored = 0
        # Scores over the vocabulary take much memory: of one prompt at a time, however many are asked for.
        self._scoring = threading.Lock()
        self.manager = self._manager(cache_tokens, slots)

    def _grammars(self) -> Grammars | None:
        """None: grammars are walked over the tokens of the Rust library tokenizers, and this model has others."""
        if not isinstance(self.tokenizer, PreTrainedTokenizerFast):
            return None
        size = max(self.vocabulary_size, len(self.tokenizer))
        return Grammars(self.tokenizer, vocabulary_size=size, ends=sorted(self.ends))

    def _manager(self, cache_tokens: int, slots: int) -> Any:
        generation = GenerationConfig(do_sample=False, eos_token_id=sorted(self.ends) or [-1])
        batching = ContinuousBatchingConfig(
            page_size=PAGE_TOKENS,
            num_blocks=-(-cache_tokens // PAGE_TOKENS) + 1,
            max_requests_per_batch=slots,
            max_batch_tokens=pass_tokens(slots),
            # The sampler needs to see each batch in turn, from Python.
            use_async_batching=False,
            use_cuda_graph=False,
            # Looking for a faster attention would ask the hub.
            auto_switch_to_flash=False,
        )
        manager = self.model.init_continuous_batching(generation_config=generation, continuous_batching_config=batching)
        processors = AdapterAwareProcessors(LogitsProcessorList([self.sampler]), self.adapters)
        processors.tensors_required = 1
        manager.logit_processor = processors
        return manager

    def start(self) -> None:
        """Starts generating. When that fails for good, this process ends, and the host starts another."""
        self.manager.start()
        threading.Thread(target=self._end_process_with_manager, daemon=True).start()

    def _end_process_with_manager(self) -> None:
        self.manager.join(time.perf_counter())
        log.error("generation ended; this process ends too")
        os.kill(os.getpid(), signal.SIGTERM)

    @property
    def passes(self) -> int:
        """How often the model was run, for the batch or beside it."""
        return self.sampler.passes + self._scored

    def cache_usage(self) -> float:
        """The used share of the key-value cache, 0 to 1."""
        processor = self.manager.batch_processor
        return 0.0 if processor is None else 1.0 - float(processor.cache.compute_free_capacity())

    async def warm_up(self) -> None:
        """One short request, so that the first one of a client finds everything in place."""
        settings = SamplingSettings(temperature=0)
        async for _ in self.generate([next(iter(self.ends), 0)], settings, max_tokens=2, stops=()):
            continue
        # There is a cache only now, and no adapter yet.
        self.adapters.isolate(self.manager.batch_processor.cache)

    def decode(self, tokens: Sequence[int]) -> str:
        shown = [token for token in tokens if token not in self._hidden]
        text: str = self.tokenizer.decode(shown, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def token_text(self, token: int) -> str:
        text: str = self.tokenizer.decode([token], skip_special_tokens=False)
        return text

    def token_bytes(self, token: int) -> bytes:
        """A token's bytes, which may be a part of a character only. Some rows of a model stand for no token."""
        if token >= len(self.tokenizer):
            return b""
        if self.grammars is None:
            return self.token_text(token).encode()
        return self.grammars.tokens.decode_bytes([token])

    @torch.inference_mode()
    def prompt_logprobs(self, prompt: Sequence[int], top: int, adapter: LowRank | None = None) -> list[TokenLogprob]:
        """What the model says of each token of a prompt, given those before it; of the first it says nothing.

        Passes of their own, beside the batch: weights are only read. Scores over the vocabulary take too much memory
        for more than a part of a prompt at a time.
        """
        with self._scoring, self.adapters.alone(adapter):
            return self._prompt_logprobs(prompt, top)

    def _prompt_logprobs(self, prompt: Sequence[int], top: int) -> list[TokenLogprob]:
        told = [TokenLogprob(prompt[0], None, ())]
        past = DynamicCache(config=self.model.config)
        for start in range(0, len(prompt), SCORED_TOKENS):
            part = torch.tensor([list(prompt[start : start + SCORED_TOKENS])], device=self.model.device)
            self._scored += 1
            scores = self.model(part, past_key_values=past, use_cache=True).logits[0]
            following = prompt[start + 1 : start + 1 + SCORED_TOKENS]
            told += [token_logprob(token, row, top) for token, row in zip(following, scores, strict=False)]
        return told

    async def generate(
        self,
        prompt: Sequence[int],
        settings: SamplingSettings,
        *,
        max_tokens: int,
        stops: Sequence[str],
        constraint: Constraint | None = None,
        adapter: LowRank | None = None,
    ) -> AsyncGenerator[Piece, None]:
        """Pieces as they come. Leaving early cancels the request. Raises EngineFailed."""
        request_id = request_name(adapter)
        outputs: asyncio.Queue[GenerationOutput] = asyncio.Queue()
        self.sampler.states[request_id] = state = SamplingState(settings, prompt=prompt, constraint=constraint)
        if adapter is not None:
            self.adapters.requests[request_id] = adapter
        self.manager.register_result_handler(request_id, outputs.put_nowait)
        choice = Choice(TextStream(self.decode, stops), state, self.ends)
        try:
            self._add(request_id, prompt, max_tokens)
            while choice.finish_reason is None:
                piece = choice.advance(await outputs.get())
                if piece is not None:
                    yield piece
        finally:
            self._forget(request_id)

    def _add(self, request_id: str, prompt: Sequence[int], max_tokens: int) -> None:
        added = self.manager.add_request(list(prompt), request_id=request_id, max_new_tokens=max_tokens, streaming=True)
        if added is None:
            raise EngineFailed("the engine is ending; send the request again and it is restarted")

    def _forget(self, request_id: str) -> None:
        # Cancelling a request that has ended does nothing.
        self.manager.cancel_request(request_id)
        self.sampler.states.pop(request_id, None)
        self.adapters.requests.pop(request_id, None)
        self.manager.output_router.result_handlers.pop(request_id, None)


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens after which an answer is complete."""
    found: set[int] = set()
    for given in (model.generation_config.eos_token_id, tokenizer.eos_token_id):
        found |= set(given) if isinstance(given, list) else {given} - {None}
    template = tokenizer.chat_template
    known = tokenizer.get_added_vocab()
    used = [token for token in END_OF_TURN if isinstance(template, str) and token in template]
    return frozenset(found | {known[token] for token in used if token in known})


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """Those that no text is turned into, by their names."""
    added: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    found = {token.content: number for number, token in added.items() if token.special}
    return found | dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))


def sampling_defaults(config: Any) -> SamplingSettings:
    """How the model's makers sample from it, where they say so; else as OpenAI's API does by default."""
    if not config.do_sample:
        return SamplingSettings()
    return SamplingSettings(
        temperature=1.0 if config.temperature is None else config.temperature,
        top_p=1.0 if config.top_p is None else config.top_p,
        top_k=config.top_k or 0,
    )
