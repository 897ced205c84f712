"""A hub model's configuration and tensor headers, read without its weights.

https://huggingface.co/docs/safetensors/metadata_parsing: the header of each file is asked for by ranges of bytes.
"""

from __future__ import annotations

import json
from typing import Any, Final

import httpx

from app.domain.errors import CorruptCheckpoint, HubUnreachable, SourceNotFound
from app.domain.estimates import ModelShape
from app.domain.model_names import ModelName
from app.domain.quantization.sizes import StoredTensor
from app.settings import Settings
from app.storage.checkpoints import CONFIG, WEIGHTS, WEIGHTS_INDEX
from app.storage.tensor_headers import LENGTH_BYTES, MAX_HEADER_BYTES

# Most headers fit, so that one request does.
FIRST_BYTES: Final = 100_000


def read_hub_model(name: ModelName, settings: Settings) -> ModelShape:
    """Raises SourceNotFound (also for a model that the token may not read), CorruptCheckpoint or HubUnreachable."""
    headers = {"authorization": f"Bearer {settings.hub_token}"} if settings.hub_token else {}
    base = f"{settings.hub_endpoint}/{name.repo}/resolve/{name.revision or 'main'}/"
    try:
        with httpx.Client(
            base_url=base, headers=headers, timeout=settings.hub_timeout_seconds, follow_redirects=True
        ) as client:
            return _read(client, name)
    except httpx.HTTPError as error:
        raise HubUnreachable(
            f"the hub at {settings.hub_endpoint} could not be asked for {name.name!r} ({type(error).__name__}); "
            f"check BITMILL_HUB_ENDPOINT and the network",
            param="model",
        ) from error


def _read(client: httpx.Client, name: ModelName) -> ModelShape:
    config = _object(_get(client, CONFIG, name), CONFIG)
    if _exists(client, WEIGHTS_INDEX):
        index = _object(_get(client, WEIGHTS_INDEX, name), WEIGHTS_INDEX)
        files = sorted(set(map(str, index.get("weight_map", {}).values())))
    else:
        files = [WEIGHTS]
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        tensors |= _tensors(_header(client, file, name), file)
    architecture = next(iter(config.get("architectures") or []), "unknown")
    return ModelShape(architecture=str(architecture), config=config, tensors=tensors)


def _exists(client: httpx.Client, file: str) -> bool:
    return client.head(file).is_success


def _get(client: httpx.Client, file: str, name: ModelName, byte_range: str | None = None) -> bytes:
    answer = client.get(file, headers={"range": f"bytes={byte_range}"} if byte_range else {})
    if answer.status_code in (401, 403, 404):
        raise SourceNotFound(
            f"the hub has no {file} of {name.name!r} for us (HTTP {answer.status_code}); check the name, and "
            f"BITMILL_HUB_TOKEN for a gated or private model",
            param="model",
        )
    answer.raise_for_status()
    return answer.content


def _header(client: httpx.Client, file: str, name: ModelName) -> bytes:
    start = _get(client, file, name, f"0-{FIRST_BYTES - 1}")
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise CorruptCheckpoint(f"{file} claims a header of {length} bytes, over the format's limit", param="model")
    end = LENGTH_BYTES + length
    whole = start if len(start) >= end else _get(client, file, name, f"0-{end - 1}")
    return whole[LENGTH_BYTES:end]


def _tensors(header: bytes, file: str) -> dict[str, StoredTensor]:
    found = _object(header, file)
    try:
        return {
            name: StoredTensor(
                dtype=entry["dtype"],
                shape=tuple(entry["shape"]),
                size_bytes=entry["data_offsets"][1] - entry["data_offsets"][0],
            )
            for name, entry in found.items()
            if name != "__metadata__"
        }
    except (KeyError, TypeError, IndexError) as error:
        raise CorruptCheckpoint(f"{file} has an invalid header ({error})", param="model") from error


def _object(text: bytes, file: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise CorruptCheckpoint(f"{file} on the hub is no valid JSON ({error})", param="model") from error
    if not isinstance(value, dict):
        raise CorruptCheckpoint(f"{file} on the hub holds no JSON object", param="model")
    return value
