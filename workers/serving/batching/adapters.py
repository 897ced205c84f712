"""Several low-rank adapters beside one model, each request with its own or none, in the same batch.

W x becomes W x + (alpha / rank) B A x for the tokens of an adapter's requests (LoRA, arXiv:2106.09685). The layers
themselves stay as they are, whatever holds their weights; the addition hangs on their outputs.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.continuous_batching.requests import FutureRequestState

from app.domain.errors import InvalidParameter, ModelNotFound
from workers.training.merging import read_updates

ADAPTED: Final = "adapted-"

# Layer name → A, shape [rank, inputs], and B with the scale in it, shape [outputs, rank].
LowRank = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


def read_adapter(*folders: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """An adapter as peft stores it, or the sum of several: their ranks stand beside each other.

    Raises IncompatibleModel for what is more than two matrices per layer.
    """
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for folder in folders:
        for name, update in read_updates(folder).items():
            layer = name.removesuffix(".weight")
            down, up = update.down, update.up * update.scale
            if layer in found:
                down, up = torch.cat([found[layer][0], down]), torch.cat([found[layer][1], up], dim=1)
            found[layer] = (down, up)
    return found


def request_name(adapter: LowRank | None) -> str:
    """A fresh id for a request."""
    return uuid.uuid4().hex if adapter is None else ADAPTED + uuid.uuid4().hex


def is_adapted(name: str) -> bool:
    return name.startswith(ADAPTED)


class Adapters:
    """The adapters beside one model. `loaded` and `requests` are read by the thread that generates."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.loaded: dict[str, LowRank] = {}
        # Request id → what it is generated with. A request keeps its adapter even when that is unloaded.
        self.requests: dict[str, LowRank] = {}
        self._hooked: set[str] = set()
        # Adapters are loaded in threads, and a layer with two hooks would add everything twice.
        self._hooking = threading.Lock()
        # Which positions of the pass that this thread runs belong to which adapter.
        self._pass = threading.local()

    def load(self, name: str, *folders: Path) -> None:
        """Raises InvalidParameter for an adapter of another model."""
        adapter = read_adapter(*folders)
        modules = dict(self.model.named_modules())
        unknown = sorted(adapter.keys() - modules.keys())
        if unknown:
            raise InvalidParameter(
                f"the adapter {name!r} has a layer {unknown[0]!r} that its base lacks", param="model"
            )
        device, dtype = next(self.model.parameters()).device, self._dtype()
        self.loaded[name] = {
            layer: (down.to(device, dtype), up.to(device, dtype)) for layer, (down, up) in adapter.items()
        }
        with self._hooking:
            for layer in sorted(adapter.keys() - self._hooked):
                modules[layer].register_forward_hook(self._hook(layer))
                self._hooked.add(layer)

    def _dtype(self) -> torch.dtype:
        dtype = getattr(self.model, "dtype", torch.float32)
        return dtype if dtype.is_floating_point else torch.float32

    def unload(self, name: str) -> None:
        self.loaded.pop(name, None)

    def get(self, name: str) -> LowRank:
        """Raises ModelNotFound."""
        if name not in self.loaded:
            raise ModelNotFound(f"no adapter {name!r} is loaded here; it has {sorted(self.loaded)}", param="model")
        return self.loaded[name]

    def plan(self, batch: Sequence[FutureRequestState]) -> None:
        """Notes which positions of the pass that follows in this thread are whose: requests stand one after another."""
        rows: dict[int, list[int]] = {}
        used: dict[int, LowRank] = {}
        start = 0
        for entry in batch:
            end = start + entry.query_length
            adapter = self.requests.get(entry.state.request_id)
            if adapter is not None:
                used[id(adapter)] = adapter
                rows.setdefault(id(adapter), []).extend(range(start, end))
            start = end
        device = next(self.model.parameters()).device
        self._pass.parts = [(used[key], torch.tensor(index, device=device)) for key, index in rows.items()]

    @contextmanager
    def alone(self, adapter: LowRank | None) -> Iterator[None]:
        """For passes of this thread that are all of one adapter, or of none."""
        self._pass.parts = [] if adapter is None else [(adapter, slice(None))]
        try:
            yield
        finally:
            self._pass.parts = []

    def _hook(self, layer: str) -> Any:
        def add(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            # [1, tokens, inputs] → [1, tokens, outputs]
            for adapter, rows in getattr(self._pass, "parts", ()):
                if layer in adapter:
                    down, up = adapter[layer]
                    change = inputs[0][:, rows].to(down.dtype) @ down.T @ up.T
                    output[:, rows] += change.to(output.dtype)
            return output

        return add

    def isolate(self, cache: Any) -> None:
        """Keys and values of an adapter's requests are not the base's: their prefixes are not shared.

        Its name tells such a request, not what is noted of it: the library may still have one that was cancelled.
        """
        search, count = cache.search_prefix_match, cache.count_new_complete_blocks
        cache.search_prefix_match = lambda name, prompt: 0 if is_adapted(name) else search(name, prompt)
        cache.count_new_complete_blocks = lambda state, length: (
            {} if is_adapted(state.request_id) else count(state, length)
        )


class AdapterAwareProcessors(ContinuousBatchingLogitsProcessorList):
    """The library tells its processors of each batch before the pass; the adapters hear it too."""

    def __init__(self, processors: Any, adapters: Adapters) -> None:
        super().__init__(processors)
        self.adapters = adapters

    def prepare_tensor_args(
        self, requests_in_batch: list[FutureRequestState], arg_storage: torch.Tensor
    ) -> torch.Tensor:
        self.adapters.plan(requests_in_batch)
        return super().prepare_tensor_args(requests_in_batch, arg_storage)
