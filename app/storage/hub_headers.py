"""A hub model's configuration and tensor headers, read without its weights.

https://huggingface.co/docs/safetensors/metadata_parsing: the header of each file is asked for by ranges of bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from app.domain.errors import CorruptCheckpoint
from app.domain.estimates import ModelShape
from app.domain.model_names import ModelName
from app.settings import Settings
from app.storage.checkpoints import CONFIG, WEIGHTS, WEIGHTS_INDEX, merge_tensors, parse_index, parse_json_object
from app.storage.hub_reader import HubReader
from app.storage.shapes import stored_tensor
from app.storage.tensor_headers import LENGTH_BYTES, MAX_HEADER_BYTES, parse_tensor_infos

# Most headers fit, so that one request does.
FIRST_BYTES: Final = 100_000
# Of one JSON file; the index of a model with 150,000 tensors has 15 MB.
MAX_JSON_BYTES: Final = 32 * 1024**2
# Five times what the largest models known have.
MAX_SHARDS: Final = 1000


def read_hub_model(name: ModelName, settings: Settings) -> ModelShape:
    """Raises SourceNotFound (also for a model that the token may not read), CorruptCheckpoint or HubUnreachable."""
    with HubReader(name, settings) as hub:
        config = parse_json_object(CONFIG, hub.read(CONFIG, MAX_JSON_BYTES))
        tensors = merge_tensors({file: parse_tensor_infos(Path(file), _header(hub, file)) for file in _shards(hub)})
    return ModelShape(
        architecture=_architecture(config),
        config=config,
        tensors={name: stored_tensor(info) for name, info in tensors.items()},
    )


def _architecture(config: dict[str, Any]) -> str:
    match config.get("architectures"):
        case [str(architecture), *_]:
            return architecture
    return "unknown"


def _shards(hub: HubReader) -> list[str]:
    text = hub.find(WEIGHTS_INDEX, MAX_JSON_BYTES)
    if text is None:
        return [WEIGHTS]
    index = parse_index(WEIGHTS_INDEX, parse_json_object(WEIGHTS_INDEX, text))
    shards = sorted(set(index.values()))
    if len(shards) > MAX_SHARDS:
        raise CorruptCheckpoint(
            f"{WEIGHTS_INDEX} of {hub.model.name!r} names {len(shards)} shards, more than {MAX_SHARDS}; no model "
            "has as many",
            param="model",
        )
    return shards


def _header(hub: HubReader, file: str) -> bytes:
    start = hub.beginning(file, FIRST_BYTES)
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise CorruptCheckpoint(f"{file} claims a header of {length} bytes, over the format's limit", param="model")
    end = LENGTH_BYTES + length
    whole = start if len(start) >= end else hub.beginning(file, end)
    return whole[LENGTH_BYTES:end]
