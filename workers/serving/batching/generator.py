"""One model, generating for many requests at once."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    ContinuousBatchingConfig,
    GenerationConfig,
    LogitsProcessorList,
)
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList
from transformers.generation.continuous_batching.requests import GenerationOutput, RequestStatus

from app.domain.errors import EngineFailed
from workers.serving.batching.sampling import PerRequestSampler, SamplingSettings, SamplingState, TokenLogprob
from workers.serving.batching.text import TextStream

log = logging.getLogger(__name__)

# How the families of models end a turn. Some checkpoints fail to list theirs among the end-of-text tokens.
END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|return|>", "<turn|>")
PAGE_TOKENS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Some more of a choice. The last one has a finish_reason. `tokens` counts all so far."""

    text: str
    tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None


class BatchedGenerator:
    """Loads a checkpoint and keeps it generating in a thread of the library's."""

    def __init__(self, folder: Path, *, context_length: int, cache_tokens: int, slots: int) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = _load_model(folder)
        config = self.model.config.get_text_config()
        self.context_length = min(context_length, getattr(config, "max_position_embeddings", context_length))
        self.vocabulary_size: int = config.vocab_size
        self.ends = end_tokens(self.model, self.tokenizer)
        self.sampler = PerRequestSampler()
        self.manager = self._manager(cache_tokens, slots)

    def _manager(self, cache_tokens: int, slots: int) -> Any:
        generation = GenerationConfig(do_sample=False, eos_token_id=sorted(self.ends) or [-1])
        batching = ContinuousBatchingConfig(
            page_size=PAGE_TOKENS,
            num_blocks=-(-cache_tokens // PAGE_TOKENS) + 1,
            max_requests_per_batch=slots,
            max_batch_tokens=max(256, slots),
            # The sampler needs to see each batch in turn, from Python.
            use_async_batching=False,
            use_cuda_graph=False,
            # Looking for a faster attention would ask the hub.
            auto_switch_to_flash=False,
        )
        manager = self.model.init_continuous_batching(
            generation_config=generation, continuous_batching_config=batching
        )
        processors = ContinuousBatchingLogitsProcessorList(LogitsProcessorList([self.sampler]))
        processors.tensors_required = 1
        manager.logit_processor = processors
        return manager

    def start(self) -> None:
        """Starts generating. When that ends by a failure, so does this process, and the host starts another."""
        self.manager.start()
        threading.Thread(target=self._end_process_with_manager, daemon=True).start()

    def _end_process_with_manager(self) -> None:
        self.manager.join(time.perf_counter())
        log.error("generation ended; this process ends too")
        os.kill(os.getpid(), signal.SIGTERM)

    async def warm_up(self) -> None:
        """One short request, so that the first one of a client finds everything in place."""
        settings = SamplingSettings(temperature=0)
        async for _ in self.generate([next(iter(self.ends), 0)], settings, max_tokens=2, stops=()):
            continue

    def decode(self, tokens: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    async def generate(
        self, prompt: Sequence[int], settings: SamplingSettings, *, max_tokens: int, stops: Sequence[str]
    ) -> AsyncIterator[Piece]:
        """Pieces as they come. Leaving early cancels the request. Raises EngineFailed."""
        request_id = uuid.uuid4().hex
        outputs: asyncio.Queue[GenerationOutput] = asyncio.Queue()
        self.sampler.states[request_id] = state = SamplingState(settings)
        self.manager.register_result_handler(request_id, outputs.put_nowait)
        finished = False
        try:
            self._add(request_id, prompt, max_tokens)
            text = TextStream(self.decode, stops)
            seen = logged = 0
            while not finished:
                output = await outputs.get()
                piece, finished = self._piece(output, seen, text, state.logprobs[logged:])
                seen = len(output.generated_tokens)
                logged += len(piece.logprobs)
                if finished or piece.text:
                    yield piece
                finished = finished and output.is_finished() or piece.finish_reason is not None
        finally:
            self._forget(request_id)

    def _add(self, request_id: str, prompt: Sequence[int], max_tokens: int) -> None:
        added = self.manager.add_request(
            list(prompt), request_id=request_id, max_new_tokens=max_tokens, streaming=True
        )
        if added is None:
            raise EngineFailed("the engine is ending; send the request again and it is restarted")

    def _forget(self, request_id: str) -> None:
        # Cancelling a request that has ended does nothing.
        self.manager.cancel_request(request_id)
        self.sampler.states.pop(request_id, None)
        self.manager.output_router.result_handlers.pop(request_id, None)
