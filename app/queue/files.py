"""Celery's filesystem broker, whose files appear whole.

The library writes a message into a file that its readers see from the first moment: a worker that looks just then
reads half of it, and ends. Here a file gets its name when it is written.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from kombu.exceptions import ChannelError
from kombu.transport import TRANSPORT_ALIASES, filesystem
from kombu.utils.json import dumps

SCHEME: Final = "bitmill-files"
TRANSPORT_ALIASES[SCHEME] = "app.queue.files:Transport"


class Channel(filesystem.Channel):  # type: ignore[misc]  # kombu has no type information
    def _put(self, queue: str, payload: dict[str, Any], **_: Any) -> None:
        # Readers take the files in the order of their names.
        name = f"{round(time.monotonic() * 1000)}_{uuid4()}.{queue}.msg"
        folder = Path(self.data_folder_out)
        # A name that ends differently is no message's.
        written = folder / f"{name}.partial"
        try:
            written.write_bytes(dumps(payload).encode())
            written.rename(folder / name)
        except OSError as error:
            raise ChannelError(f"cannot add the message {name!r} to {folder}: {error.strerror}") from error

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        # An exchange's table is locked while it is read and written, but not before it has its first content.
        _make_table(self._exchange_file(exchange))
        super()._queue_bind(exchange, routing_key, pattern, queue)


def _make_table(file: Path) -> None:
    if file.exists():
        return
    file.parent.mkdir(exist_ok=True)
    empty = file.with_name(f".{uuid4()}")
    empty.write_text("[]")
    with suppress(FileExistsError):  # another process was faster
        os.link(empty, file)
    empty.unlink()


class Transport(filesystem.Transport):  # type: ignore[misc]  # kombu has no type information
    Channel = Channel
