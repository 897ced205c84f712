"""What a GGUF file says of itself, read without its weights.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gguf import GGUFReader

from app.domain.errors import CorruptCheckpoint, IncompatibleModel
from workers.gguf_safety import require_plausible_counts

END_TOKENS: Final = ("eos", "eot", "eom")


@dataclass(frozen=True)
class GgufMetadata:
    """The keys of a file and its reader. `parameter_count` counts the elements of every tensor."""

    reader: GGUFReader

    @property
    def architecture(self) -> str:
        return str(self.value("general.architecture"))

    @property
    def parameter_count(self) -> int:
        return sum(int(tensor.n_elements) for tensor in self.reader.tensors)

    def value(self, key: str) -> Any:
        """A key's value as plain Python, or None where the file does not have it."""
        field = self.reader.get_field(key)
        return field.contents() if field is not None else None

    def token_id(self, name: str) -> int | None:
        """The id of a special token, such as `bos` or `padding`."""
        found = self.value(f"tokenizer.ggml.{name}_token_id")
        return int(found) if found is not None else None

    def end_token_ids(self) -> list[int]:
        """Ids of the tokens that end a text or a turn: a chat ends with another token than a document."""
        ids = [self.token_id(name) for name in END_TOKENS]
        return list(dict.fromkeys(number for number in ids if number is not None))


def read_gguf(path: Path) -> GgufMetadata:
    """Raises CorruptCheckpoint for what is no whole GGUF file, IncompatibleModel for a part of one."""
    try:
        require_plausible_counts(path)
        metadata = GgufMetadata(GGUFReader(path))
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise CorruptCheckpoint(
            f"{path.name!r} is no whole GGUF file ({error}); copy or upload it again", param="model"
        ) from error
    if metadata.value("general.architecture") is None:
        raise CorruptCheckpoint(f"{path.name!r} names no general.architecture; convert the model again", param="model")
    parts = metadata.value("split.count") or 1
    if parts > 1:
        raise IncompatibleModel(
            f"{path.name!r} is one of {parts} parts of a model; join them with `llama-gguf-split --merge` first",
            param="model",
        )
    return metadata
