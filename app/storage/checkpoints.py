"""Looks into Hugging Face checkpoints without any ML library: what is there, and is it whole?"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn
from uuid import uuid4

from app.domain.errors import CorruptCheckpoint, IncompatibleModel, PickleCheckpoint, SourceNotFound
from app.storage.artifacts import file_sha256
from app.storage.tensor_headers import TensorInfo, read_tensor_infos

__all__ = ["Checkpoint", "TensorInfo", "fingerprint", "inspect_checkpoint", "stop_token_ids"]

CONFIG: Final = "config.json"
GENERATION_CONFIG: Final = "generation_config.json"
WEIGHTS: Final = "model.safetensors"
WEIGHTS_INDEX: Final = "model.safetensors.index.json"
PICKLE_SUFFIXES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# What can change a model's output: configuration, tokenizer, chat template and weights; never code.
MODEL_FILE_SUFFIXES: Final = (".safetensors", ".json", ".jinja", ".model", ".txt", ".tiktoken")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were found to be whole. `tensors` keeps the order of `files`."""

    path: Path
    architecture: str
    config: dict[str, Any]
    files: tuple[Path, ...]
    tensors: dict[str, TensorInfo]
    parameter_count: int
    weight_bytes: int


def inspect_checkpoint(folder: Path, *, quantized: bool = False) -> Checkpoint:
    """Reads a checkpoint's configuration and every header, but no weights. With `quantized` it may be so.

    Raises SourceNotFound (what is missing), PickleCheckpoint, IncompatibleModel (already quantized) or
    CorruptCheckpoint (which file, and which numbers).
    """
    config = _read_config(folder)
    architecture = _architecture(config)
    if not quantized:
        _refuse_quantized(folder, config)
    files, index = _find_weights(folder)
    tensors = merge_tensors({file.name: read_tensor_infos(file) for file in files})
    _check_index(index, tensors)
    return Checkpoint(
        path=folder,
        architecture=architecture,
        config=config,
        files=files,
        tensors=tensors,
        parameter_count=sum(math.prod(info.shape) for info in tensors.values()),
        weight_bytes=sum(info.end - info.start for info in tensors.values()),
    )


def stop_token_ids(checkpoint: Checkpoint) -> list[int]:
    """Tokens that end a generation by config.json and generation_config.json, in that order."""
    path = checkpoint.path / GENERATION_CONFIG
    generation = read_json_object(path) if path.is_file() else {}
    found: list[int] = []
    for value in (checkpoint.config.get("eos_token_id"), generation.get("eos_token_id")):
        found += value if isinstance(value, list) else [] if value is None else [value]
    return list(dict.fromkeys(found))


def _corrupt(problem: str) -> NoReturn:
    raise CorruptCheckpoint(problem, param="model")


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        message = f"there is no folder {folder.name!r} with a checkpoint; check the name"
        raise SourceNotFound(message, param="model")
    if not (folder / CONFIG).is_file():
        raise SourceNotFound(
            f"folder {folder.name!r} holds no {CONFIG}; give the folder of a Hugging Face checkpoint "
            f"({CONFIG}, {WEIGHTS} and the tokenizer's files)",
            param="model",
        )
    return read_json_object(folder / CONFIG)


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CorruptCheckpoint for anything else."""
    try:
        text = path.read_bytes()
    except OSError as error:
        _corrupt(f"{path.name} cannot be read ({error.strerror}); make it readable to Bitmill's user")
    return parse_json_object(path.name, text)


def parse_json_object(name: str, text: bytes) -> dict[str, Any]:
    """The object that is the text of the file `name`. Raises CorruptCheckpoint for anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        _corrupt(f"{name} is no valid JSON ({error}); copy or download it again")
    if not isinstance(value, dict):
        _corrupt(f"{name} holds a JSON {type(value).__name__}, not an object; copy or download it again")
    return value


def _architecture(config: dict[str, Any]) -> str:
    match config.get("architectures"):
        case [str(architecture), *_]:
            return architecture
        case other:
            _corrupt(
                f"{CONFIG} names no architecture (its 'architectures' is {other!r}); save the model with "
                "transformers' save_pretrained, which writes it"
            )


def _refuse_quantized(folder: Path, config: dict[str, Any]) -> None:
    found = config.get("quantization_config") or config.get("compression_config")
    if found:
        method = found.get("quant_method") if isinstance(found, dict) else None
        raise IncompatibleModel(
            f"the model in {folder.name!r} is already quantized with {method or 'an unnamed method'!r}; "
            "quantize the original instead",
            param="model",
        )


def _find_weights(folder: Path) -> tuple[tuple[Path, ...], dict[str, str]]:
    """The weights' files, in transformers' order of preference, and the index's map (empty without one)."""
    if (folder / WEIGHTS).is_file():
        return (folder / WEIGHTS,), {}
    if not (folder / WEIGHTS_INDEX).is_file():
        refuse_without_weights(folder.name, [path.name for path in folder.iterdir()])
    index = read_index(folder / WEIGHTS_INDEX)
    files = tuple(folder / name for name in sorted(set(index.values())))
    for file in files:
        if not file.is_file():
            _corrupt(f"{WEIGHTS_INDEX} names the shard {file.name!r}, which is missing; download it again")
    return files, index


def refuse_without_weights(name: str, files: list[str]) -> NoReturn:
    """Raises PickleCheckpoint or SourceNotFound for a model without safetensors."""
    pickles = sorted(file for file in files if file.endswith(PICKLE_SUFFIXES))
    if pickles:
        raise PickleCheckpoint(
            f"{name!r} has its weights only as pickle ({pickles[0]}), which can run code when it is read; "
            "convert it to safetensors with transformers' save_pretrained",
            param="model",
        )
    others = sorted(file for file in files if file.endswith((".safetensors", ".gguf")))
    found = f"; it holds {', '.join(others[:3])}" if others else ""
    raise SourceNotFound(
        f"{name!r} holds neither {WEIGHTS} nor {WEIGHTS_INDEX}{found}; give a complete checkpoint",
        param="model",
    )


def read_index(path: Path) -> dict[str, str]:
    """Maps tensor names to shards' file names. Raises CorruptCheckpoint."""
    return parse_index(path.name, read_json_object(path))


def parse_index(name: str, index: dict[str, Any]) -> dict[str, str]:
    """The map of the index in the file `name`, wherever it was read from. Raises CorruptCheckpoint.

    A shard is a file beside the index: a path or an address would lead to what is not the model's.
    """
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        _corrupt(f"{name} has no 'weight_map' from tensors to files; copy or download it again")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not shard.endswith(".safetensors") or Path(shard).name != shard:
            _corrupt(f"{name} names {shard!r} as a shard; it must be a .safetensors file beside it")
    return weight_map


def merge_tensors(headers: dict[str, dict[str, TensorInfo]]) -> dict[str, TensorInfo]:
    """The tensors of all shards, from each one's by its file's name.

    Raises CorruptCheckpoint for a tensor that two shards have, and where none has data.
    """
    tensors: dict[str, TensorInfo] = {}
    for header in headers.values():
        for name, info in header.items():
            if name in tensors:
                first = tensors[name].file.name
                _corrupt(f"tensor {name!r} is in {first} and in {info.file.name}; download both again")
            tensors[name] = info
    if not any(info.end > info.start for info in tensors.values()):
        _corrupt(f"{next(iter(headers))} holds no tensor data; copy or download it again")
    return tensors


def _check_index(index: dict[str, str], tensors: dict[str, TensorInfo]) -> None:
    for name, shard in index.items():
        if name not in tensors or tensors[name].file.name != shard:
            _corrupt(f"{WEIGHTS_INDEX} says {name!r} is in {shard}, but it is not; download both again")


def fingerprint(folder: Path, cache_folder: Path) -> str:
    """SHA-256 (64 hex digits) over the names and contents of the files that make up the model.

    The same files give the same fingerprint wherever they lie. A file's own hash is kept in `cache_folder`
    and used again while the file's size, modification time and inode stay the same.
    """
    entries = [[path.name, cached_sha256(path, cache_folder)] for path in _model_files(folder)]
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def _model_files(folder: Path) -> list[Path]:
    files = (path for path in folder.iterdir() if path.is_file())
    return sorted(path for path in files if path.name.endswith(MODEL_FILE_SUFFIXES))


def cached_sha256(path: Path, cache_folder: Path) -> str:
    """The SHA-256 of a file, computed once for as long as the file is not touched."""
    stat = path.stat()
    # The inode, not the path: a file keeps its hash when its folder is renamed into place.
    identity = [path.name, stat.st_dev, stat.st_ino]
    entry = cache_folder / "sha256" / f"{hashlib.sha256(json.dumps(identity).encode()).hexdigest()}.json"
    state = [stat.st_size, stat.st_mtime_ns]
    known = _read_entry(entry)
    if known.get("state") == state and isinstance(known.get("sha256"), str):
        return str(known["sha256"])
    digest = file_sha256(path)
    _write_entry(entry, {"state": state, "sha256": digest})
    return digest


def _read_entry(entry: Path) -> dict[str, Any]:
    """A cache entry; empty when there is none, or none that is whole: it is then computed again."""
    try:
        return read_json_object(entry) if entry.exists() else {}
    except CorruptCheckpoint:
        return {}


def _write_entry(entry: Path, value: dict[str, Any]) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    # Not the process id: containers that share the folder have the same ones.
    temporary = entry.with_suffix(f".{uuid4().hex}.tmp")
    temporary.write_text(json.dumps(value))
    temporary.replace(entry)
