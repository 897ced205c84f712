"""What differs between the ways of training: how the model is loaded, and what is written of it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Protocol

from transformers import AutoModelForCausalLM, GenerationConfig

from app.domain.fine_tuning import Adapter, TrainingOptions
from app.storage.checkpoints import Checkpoint
from app.storage.tensor_headers import read_tensor_infos
from workers.loading import default_device, require_all_found
from workers.quantization.base import WritingRun


class Base(Protocol):
    """The model that is trained. `name` is what users call it by."""

    @property
    def name(self) -> str: ...

    @property
    def checkpoint(self) -> Checkpoint: ...


@dataclass(frozen=True)
class Written:
    """What an artifact's files hold. `tensor_types` counts tensors by their type."""

    tensor_types: dict[str, int]
    parameter_count: int
    weight_bytes: int


class Recipe(ABC):
    def __init__(self, options: TrainingOptions) -> None:
        self.options = options

    @abstractmethod
    def load(self, base: Checkpoint) -> Any:
        """The model, ready to be trained: of its parameters, those that require gradients.

        Raises InvalidParameter, IncompatibleModel or UnsupportedArchitecture for a model that the options do not fit.
        """

    @abstractmethod
    def save(self, model: Any, base: Base, target: Path, scratch: Path, run: WritingRun) -> Written:
        """Writes the trained model into the empty folder `target`. `scratch` is a folder for whatever comes between."""


RECIPES: Final[dict[Adapter, str]] = {
    Adapter.LORA: "workers.training.low_rank:LowRank",
    Adapter.QLORA: "workers.training.low_rank:LowRank",
    Adapter.FULL: "workers.training.full:Full",
    Adapter.QAT: "workers.training.qat:Qat",
}


def recipe_of(options: TrainingOptions) -> Recipe:
    module, _, attribute = RECIPES[options.adapter].partition(":")
    recipe: Recipe = getattr(import_module(module), attribute)(options)
    return recipe


def load_base(base: Checkpoint, **options: Any) -> Any:
    """The model on the first GPU, if there is one, else in memory. Runs no code from it and asks no hub."""
    model, loaded = AutoModelForCausalLM.from_pretrained(
        base.path, device_map={"": default_device()}, local_files_only=True, trust_remote_code=False,
        output_loading_info=True, **options,
    )  # fmt: skip
    require_all_found(base.path, loaded)
    model.config.use_cache = False
    # The library refuses to save some models' own, which is copied from the base instead.
    model.generation_config = GenerationConfig()
    return model


def describe_files(folder: Path) -> Written:
    """What the safetensors files of a folder hold, as they name it."""
    types: Counter[str] = Counter()
    parameters = size = 0
    for file in sorted(folder.glob("*.safetensors")):
        for info in read_tensor_infos(file).values():
            types[info.dtype] += 1
            parameters += math.prod(info.shape)
            size += info.end - info.start
    return Written(dict(types), parameters, size)
