"""Whether a checkpoint holds every tensor of its model, found before any weight is read.

transformers fills what it does not find with random numbers and only warns; what is made of such a model would be
measured against it and found equal. Which names a file may use, which weights are tied, fused or left out is
transformers' own knowledge: so it loads the model itself, from tensors of the right names and shapes that have no
contents (torch's meta device).
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from app.domain.errors import CorruptCheckpoint
from app.settings import Settings
from app.storage.checkpoints import Checkpoint
from app.storage.pooling import is_for_embeddings

if TYPE_CHECKING:  # heavy, and most sources have been looked at before
    from transformers import PreTrainedConfig, PreTrainedModel

# What no part of Bitmill asks of a model for embeddings: its vectors are made of the states of tokens.
UNUSED: Final = "pooler."
SHOWN: Final = 3


def require_complete(checkpoint: Checkpoint, fingerprint: str, settings: Settings, *, head: bool = False) -> None:
    """Raises CorruptCheckpoint, with the names of what is missing or has another shape than config.json says.

    A model for embeddings needs its head only where `head` is asked for. A model that transformers does not know is
    left to who does. A checkpoint that was found complete is not looked at again.
    """
    backbone = is_for_embeddings(checkpoint.path) and not head
    kind = "backbone" if backbone else "model"
    seen = settings.cache_folder / "complete" / f"{fingerprint}-{kind}-{version('transformers')}"
    if seen.is_file():
        return
    _require_complete(checkpoint, backbone=backbone)
    seen.parent.mkdir(parents=True, exist_ok=True)
    seen.touch()


def _require_complete(checkpoint: Checkpoint, *, backbone: bool) -> None:
    config = _read_config(checkpoint.path)
    kind = _model_class(config, backbone=backbone)
    if config is None or kind is None:
        return
    try:
        loaded = _load_names(checkpoint, config, kind)
    except RuntimeError as error:
        # Tensors that transformers puts together, such as those of experts, are too few or do not fit.
        raise _unfit(checkpoint, kind, sorted(_expected(config, kind) - set(checkpoint.tensors))) from error
    missing = sorted(name for name in loaded["missing_keys"] if not (backbone and name.startswith(UNUSED)))
    if missing:
        raise CorruptCheckpoint(
            f"the checkpoint lacks {_listed(missing)}, which a {kind.__name__} has by its config.json; copy or "
            "download it again, or save it anew",
            param="model",
        )
    for name, stored, wanted in sorted(loaded["mismatched_keys"]):
        raise CorruptCheckpoint(
            f"the checkpoint's {name} has the shape {list(stored)} where config.json makes it {list(wanted)}; copy or "
            "download both again",
            param="model",
        )


def _read_config(folder: Path) -> PreTrainedConfig | None:
    """None for an architecture that transformers does not know."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, KeyError):
        return None


def _model_class(config: PreTrainedConfig | None, *, backbone: bool) -> type[PreTrainedModel] | None:
    """The class that loads this configuration, with or without a head."""
    from transformers import AutoModel, AutoModelForCausalLM

    mapping = (AutoModel if backbone else AutoModelForCausalLM)._model_mapping
    found = mapping.get(type(config), None)
    # Where there are several, the first is the one that AutoModel takes by default.
    return found[0] if isinstance(found, tuple | list) else found


def _load_names(checkpoint: Checkpoint, config: PreTrainedConfig, kind: type[PreTrainedModel]) -> dict[str, Any]:
    """What transformers tells of loading these names and shapes."""
    import torch

    empty = {name: torch.empty(info.shape, device="meta") for name, info in checkpoint.tensors.items()}
    _, loaded = kind.from_pretrained(
        None, config=config, state_dict=empty, device_map={"": "meta"}, output_loading_info=True,
        ignore_mismatched_sizes=True,
    )  # fmt: skip
    return dict(loaded)


def _expected(config: PreTrainedConfig, kind: type[PreTrainedModel]) -> set[str]:
    """The names under which transformers itself would save the model."""
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    with torch.device("meta"):
        model = kind(config)
    return set(revert_weight_conversion(model, dict(model.state_dict())))


def _unfit(checkpoint: Checkpoint, kind: type[PreTrainedModel], missing: list[str]) -> CorruptCheckpoint:
    reason = f"it lacks {_listed(missing)}" if missing else "the worker's log of this job names them"
    return CorruptCheckpoint(
        f"the tensors of the checkpoint {checkpoint.path.name!r} cannot be put together to a {kind.__name__}: "
        f"{reason}; copy or download it again",
        param="model",
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more
