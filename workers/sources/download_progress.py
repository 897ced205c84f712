"""Turns what huggingface_hub tells its progress bars into a fraction of a whole download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from huggingface_hub.utils.tqdm import tqdm

from workers.sources.importing import Report

# Checking and fingerprinting a downloaded model fill the rest.
DOWNLOAD_SHARE: Final = 0.9


@dataclass
class DownloadProgress:
    """Counts the bytes of one file after another."""

    total_bytes: int
    report: Report
    stage: str
    finished_bytes: int = 0
    current_bytes: int = 0

    def finish(self, size_bytes: int) -> None:
        self.finished_bytes += size_bytes
        self.current_bytes = 0
        self.tell()

    def tell(self) -> None:
        done = (self.finished_bytes + self.current_bytes) / max(self.total_bytes, 1)
        self.report(DOWNLOAD_SHARE * min(done, 1.0), self.stage)

    def bar(self) -> type[tqdm]:
        """The class that huggingface_hub calls while it downloads; it draws nothing."""
        progress = self

        class Bar(tqdm):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **{**kwargs, "disable": True})
                self.seen = 0

            def update(self, n: float | None = 1) -> None:
                # Some downloads drive two bars, received and written bytes: the further one counts.
                self.seen += int(n or 0)
                progress.current_bytes = max(progress.current_bytes, self.seen)
                progress.tell()

        return Bar
