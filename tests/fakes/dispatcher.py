"""A dispatcher that remembers whom it would have rung for."""

from __future__ import annotations

from app.queue.dispatcher import Dispatcher


class RecordingDispatcher(Dispatcher):
    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []

    def send(self, job_id: str, queue: str) -> None:
        self.sent.append((job_id, queue))
