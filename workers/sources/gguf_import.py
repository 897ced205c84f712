"""GGUF files as sources: dequantized to a plain bfloat16 checkpoint, by transformers' own loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

from app.domain.errors import InsufficientMemory, UnsupportedArchitecture
from app.settings import Settings
from app.storage.artifacts import require_free_disk
from app.storage.checkpoints import cached_sha256
from app.storage.sources import imported_folder
from workers.sources.gguf_metadata import GgufMetadata, read_gguf
from workers.sources.gguf_rope import rope_parameters
from workers.sources.gguf_tokenizer import save_tokenizer
from workers.sources.importing import Report, import_afresh, telling

if TYPE_CHECKING:  # heavy, and most sources are no GGUF files
    from transformers import PreTrainedConfig

BFLOAT16_BYTES: Final = 2
# The weights in float32, as they are dequantized, and the bfloat16 copy that is saved.
BYTES_PER_PARAMETER: Final = 6


def import_gguf(gguf: Path, settings: Settings, report: Report) -> Path:
    """The checkpoint of a GGUF file, unpacked unless a file of the same content was before.

    Raises CorruptCheckpoint, IncompatibleModel, UnsupportedArchitecture, InsufficientMemory or DiskFull.
    """
    report(0.0, f"hashing {gguf.name}")
    target = imported_folder(cached_sha256(gguf, settings.cache_folder), settings)
    return import_afresh(target, lambda folder: unpack(gguf, folder, settings, report), telling(report))


def unpack(gguf: Path, folder: Path, settings: Settings, report: Report) -> None:
    """Fills a folder with the GGUF's model as a bfloat16 checkpoint, with tokenizer, chat template, stop tokens."""
    report(0.1, "reading the GGUF file")
    metadata = read_gguf(gguf)
    _require_room(metadata, folder, settings)
    # transformers wants a name that ends in .gguf, which an upload does not have.
    link = folder / "source.gguf"
    link.symlink_to(gguf.resolve())
    config = _read_config(link, metadata)
    save_tokenizer(link, metadata, folder)
    report(0.2, "unpacking the GGUF file")
    _save_model(link, config, folder)
    link.unlink()
    _drop_keys(folder / "config.json", "_name_or_path", "_model_name_or_path", "quantization_config")
    _drop_keys(folder / "generation_config.json", "_from_model_config")


def _require_room(metadata: GgufMetadata, folder: Path, settings: Settings) -> None:
    count = metadata.parameter_count
    require_free_disk(folder, count * BFLOAT16_BYTES, settings.min_free_disk_bytes)
    free = psutil.virtual_memory().available
    if count * BYTES_PER_PARAMETER > free:
        raise InsufficientMemory(
            f"unpacking a GGUF model of {count} parameters takes about {count * BYTES_PER_PARAMETER} bytes of memory, "
            f"but {free} are free; run the job on a worker with more, or use the original checkpoint"
        )


def _read_config(gguf: Path, metadata: GgufMetadata) -> PreTrainedConfig:
    """The model's configuration, with what transformers' loader leaves at its class's defaults set right."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except (ValueError, KeyError) as error:
        raise _unsupported(metadata) from error
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise _unsupported(metadata)
    parameters = rope_parameters(metadata)
    if parameters is not None:
        config.rope_parameters = parameters
    for name, value in _token_ids(metadata).items():
        setattr(config, name, value)
    return config


def _unsupported(metadata: GgufMetadata) -> UnsupportedArchitecture:
    return UnsupportedArchitecture(
        f"GGUF architecture {metadata.architecture!r} is none that transformers can unpack to a language model; "
        "give the original checkpoint",
        param="model",
    )


def _token_ids(metadata: GgufMetadata) -> dict[str, int | list[int] | None]:
    ends = metadata.end_token_ids()
    return {
        "bos_token_id": metadata.token_id("bos"),
        "eos_token_id": ends if len(ends) > 1 else next(iter(ends), None),
        "pad_token_id": metadata.token_id("padding"),
    }


def _save_model(gguf: Path, config: PreTrainedConfig, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, GgufConfig

    # Without `dequantize` the weights would keep their blocks, and could not be saved.
    quantization = GgufConfig(gguf_file=gguf.name, dequantize=True)
    model, loaded = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, config=config, dtype=torch.float32, quantization_config=quantization,
        output_loading_info=True,
    )  # fmt: skip
    _require_complete(loaded)
    ids = {key: getattr(config, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ids)
    model.to(torch.bfloat16).save_pretrained(folder)


def _require_complete(loaded: dict[str, Any]) -> None:
    """transformers fills what it does not find with random numbers, and only warns."""
    wrong = {kind: sorted(map(str, names)) for kind, names in loaded.items() if names}
    if wrong:
        kind, names = next(iter(wrong.items()))
        raise UnsupportedArchitecture(
            f"the GGUF file's tensors are not those of its architecture ({kind}: {', '.join(names[:3])}); give the "
            "original checkpoint",
            param="model",
        )


def _drop_keys(path: Path, *keys: str) -> None:
    content: dict[str, Any] = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in content.items() if key not in keys}, indent=2) + "\n")
