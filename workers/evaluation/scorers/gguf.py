"""Scores GGUF files with llama.cpp, through llama-cpp-python's low-level interface."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from llama_cpp import llama_cpp

from app.domain.errors import QualityGateFailed

Logits = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int64]


class GgufScorer:
    """`with GgufScorer(path, context_length)` loads a model on the CPU and frees it at the end."""

    def __init__(self, path: Path, context_length: int) -> None:
        self.path = path
        self.context_length = context_length

    def __enter__(self) -> GgufScorer:
        llama_cpp.llama_backend_init()
        self._model = self._load()
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.vocabulary_size = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self._context = self._create_context()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def _load(self) -> Any:
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        # Weights stay mapped from the file, in its layout. Other layouts use AMX where llama.cpp was built for such a
        # processor, and crash where GCC 12 built it: its _tile_loadconfig lets the tiles' configuration be optimized
        # away.
        params.use_extra_bufts = False
        model = llama_cpp.llama_model_load_from_file(os.fsencode(self.path), params)
        if not model:
            raise QualityGateFailed("llama.cpp cannot load the GGUF file; the job's log has its reason")
        return model

    def _create_context(self) -> Any:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = self.context_length
        params.n_threads = params.n_threads_batch = os.cpu_count() or 1
        # The cache's types stay llama.cpp's defaults, so that figures equal llama-perplexity's.
        context = llama_cpp.llama_init_from_model(self._model, params)
        if not context:
            raise QualityGateFailed("llama.cpp cannot create a context for the file; the job's log has its reason")
        return context

    def logits(self, window: Tokens, positions: slice) -> Logits:
        self._forget()
        wanted = range(*positions.indices(len(window)))
        self._decode(window, 0, wanted)
        return np.stack([self._logits_at(position) for position in wanted])

    def each_logits(self, windows: Sequence[Tokens], positions: slice) -> Iterator[Logits]:
        return (self.logits(window, positions) for window in windows)

    def generate(self, prompt: Tokens, max_tokens: int, stop: frozenset[int]) -> list[int]:
        self._forget()
        made: list[int] = []
        tokens, position = prompt, 0
        while len(made) < max_tokens:
            self._decode(tokens, position, range(len(tokens) - 1, len(tokens)))
            position += len(tokens)
            best = int(self._logits_at(len(tokens) - 1).argmax())
            if best in stop or llama_cpp.llama_vocab_is_eog(self._vocab, best):
                break
            made.append(best)
            tokens = np.array([best])
        return made

    def goes_on_after(self, stop: frozenset[int]) -> frozenset[int]:
        return frozenset(token for token in stop if not llama_cpp.llama_vocab_is_eog(self._vocab, token))

    def lacks_template(self, template: str) -> bool:
        stored = llama_cpp.llama_model_chat_template(self._model, None)
        return stored is None or stored.decode() != template

    def tokenize(self, text: str) -> Tokens:
        data = text.encode()
        room = len(data) + 16
        tokens = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), tokens, room, False, False)
        if count < 0:
            raise QualityGateFailed(f"llama.cpp could not tokenize the sample: {-count} tokens for {room} places")
        return np.array(tokens[:count], dtype=np.int64)

    def _forget(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def _decode(self, tokens: Tokens, start: int, wanted: range) -> None:
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for index, token in enumerate(tokens):
                batch.token[index] = int(token)
                batch.pos[index] = start + index
                batch.n_seq_id[index] = 1
                batch.seq_id[index][0] = 0
                batch.logits[index] = index in wanted
            code = llama_cpp.llama_decode(self._context, batch)
        finally:
            llama_cpp.llama_batch_free(batch)
        if code != 0:
            raise QualityGateFailed(f"llama.cpp failed to run the model (llama_decode returned {code})")

    def _logits_at(self, index: int) -> Logits:
        pointer = llama_cpp.llama_get_logits_ith(self._context, index)
        array = np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (self.vocabulary_size,))
        return array.copy()
