"""Goes through a model layer by layer: only one layer's weights and the activations between layers are in memory.

Each layer sees what the quantized layers before it give, so that its rounding can make up for theirs. What a layer
became, and the activations after it, are kept in the run's checkpoints: a new attempt goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file

from app.domain.errors import UnsupportedArchitecture
from app.storage.checkpoints import Checkpoint
from workers.calibration.streamed_model import open_streamed, weights_of
from workers.calibration.windows import CalibrationSet
from workers.quantization.base import JobRun

Tensors = dict[str, torch.Tensor]
# What a layer becomes: tensors to store, and full-precision ones that stand for them while the model runs.
Outcome = tuple[Tensors, Tensors]

TOKENS_PER_PASS: Final = 2048


class LayerWalk:
    """`walk(quantize)` calls `quantize(layer's name, layer, run it)` for each layer in turn."""

    def __init__(self, source: Checkpoint, calibration: CalibrationSet, run: JobRun, folder: Path) -> None:
        self.run = run
        self.folder = folder
        self.model = open_streamed(source)
        self.weights = weights_of(self.model)
        self.layers = find_layers(self.model)
        self.batches = _batches(calibration)
        # Layers differ in their masks and rotary embeddings: by layer, then by batch.
        self._arguments: dict[int, list[dict[str, Any]]] = {}
        self._hidden: list[torch.Tensor] = []

    @torch.inference_mode()
    def walk(self, quantize: Callable[[str, Any, Callable[[], object]], Outcome]) -> list[Path]:
        """One file per layer with what it became."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._capture_inputs()
        done = self._resume()
        for number, (name, layer) in enumerate(self.layers.items()):
            if number >= done:
                self.run.report(number / len(self.layers), f"quantizing layer {number + 1} of {len(self.layers)}")
                outcome = quantize(name, layer, partial(self._run_layer, number, layer))
                self._quantize_layer(number, layer, outcome)
        return [self._outcome(number) for number in range(len(self.layers))]

    def _quantize_layer(self, number: int, layer: Any, outcome: Outcome) -> None:
        stored, standing_in = outcome
        _save(stored, self._outcome(number))
        with replaced(self.weights, standing_in):
            self._hidden = self._run_layer(number, layer)
        self._keep(number)

    def _run_layer(self, number: int, layer: Any) -> list[torch.Tensor]:
        outputs = []
        for hidden, arguments in zip(self._hidden, self._arguments[number], strict=True):
            output = layer(hidden, **arguments)
            outputs.append(output[0] if isinstance(output, tuple) else output)
        return outputs

    def _capture_inputs(self) -> None:
        """Runs each batch through the original once, and notes with what each layer is called."""
        hooks = [
            layer.register_forward_pre_hook(partial(self._note, number), with_kwargs=True)
            for number, layer in enumerate(self.layers.values())
        ]
        for number, batch in enumerate(self.batches):
            self.run.report(0.0, f"reading batch {number + 1} of {len(self.batches)}")
            self.model.get_decoder()(input_ids=batch, use_cache=False)
        for hook in hooks:
            hook.remove()

    def _note(self, number: int, _layer: Any, inputs: tuple[torch.Tensor, ...], arguments: dict[str, Any]) -> None:
        rest = dict(arguments)
        hidden = inputs[0] if inputs else rest.pop("hidden_states")
        if number == 0:
            self._hidden.append(hidden)
        self._arguments.setdefault(number, []).append(rest)

    def _outcome(self, number: int) -> Path:
        return self.folder / f"layer-{number:05d}.safetensors"

    def _keep(self, number: int) -> None:
        """Whoever finds these finds the layer's outcome too, which was written before."""
        tensors = {str(index): hidden.contiguous() for index, hidden in enumerate(self._hidden)}
        _save(tensors, self.folder / f"hidden-{number:05d}.safetensors")
        (self.folder / f"hidden-{number - 1:05d}.safetensors").unlink(missing_ok=True)

    def _resume(self) -> int:
        """How many layers an earlier attempt finished; their activations are loaded."""
        kept = sorted(self.folder.glob("hidden-*.safetensors"))
        if not kept:
            return 0
        tensors = load_file(kept[-1])
        self._hidden = [tensors[str(index)].to(self._hidden[0].device) for index in range(len(tensors))]
        return int(kept[-1].stem.removeprefix("hidden-")) + 1


def _save(tensors: Tensors, path: Path) -> None:
    """All of it or nothing: by one rename."""
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary)
    temporary.rename(path)


def find_layers(model: Any) -> dict[str, Any]:
    """The decoder's layers by their modules' names, in order. Raises UnsupportedArchitecture."""
    decoder = model.get_decoder()
    if not hasattr(decoder, "layers"):
        raise UnsupportedArchitecture(
            f"a {type(model).__name__} keeps its layers where they are not looked for; choose a method that needs no "
            f"calibration",
            param="method",
        )
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    return {f"{prefix}.layers.{number}": layer for number, layer in enumerate(decoder.layers)}


def _batches(calibration: CalibrationSet) -> list[torch.Tensor]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = max(TOKENS_PER_PASS // calibration.record.sequence_length, 1)
    return [rows.to(device) for rows in torch.from_numpy(calibration.windows).split(size)]


@contextmanager
def replaced(weights: Any, tensors: Tensors) -> Iterator[None]:
    """While the block runs, the model reads these in place of what is stored."""
    weights.state_dict.update(tensors)
    try:
        yield
    finally:
        for name in tensors:
            del weights.state_dict[name]
