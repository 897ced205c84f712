"""What a GGUF file says of its tensors, without its vocabulary.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from typing import Any, Final

from gguf import GGUFReader, GGUFValueType

from workers.gguf_safety import LAYOUTS

ARRAY_HEAD: Final = struct.Struct("<IQ")
LENGTH: Final = struct.Struct("<Q")


class HeaderReader(GGUFReader):
    """gguf-py's reader of a sound file: its tensors and single values, and no contents of arrays.

    It makes four NumPy views of each text in an array: a vocabulary takes it seconds.
    """

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[GGUFValueType]]:
        if raw_type != GGUFValueType.ARRAY:
            parts: tuple[int, list[Any], list[int], list[GGUFValueType]] = super()._get_field_parts(orig_offs, raw_type)
            return parts
        kind, count = ARRAY_HEAD.unpack_from(self.data, orig_offs)
        end = orig_offs + ARRAY_HEAD.size
        if kind in LAYOUTS:
            end += count * struct.calcsize(LAYOUTS[kind])
        else:
            for _ in range(count):
                end += LENGTH.size + LENGTH.unpack_from(self.data, end)[0]
        return end - orig_offs, [], [], [GGUFValueType.ARRAY, GGUFValueType(kind)]
