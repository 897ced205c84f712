"""A JobRun without a job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.domain.files import FilePurpose
from app.domain.quantization.calibration import CalibrationParams
from app.settings import Settings
from app.storage.checkpoints import Checkpoint
from workers.calibration.loading import load_calibration
from workers.calibration.texts import read_documents
from workers.calibration.windows import CalibrationSet
from workers.quantization.base import Report
from workers.stages import StageStore


class RecordingRun:
    """Remembers what it was told; stages lie in `folder`, calibration text is the built-in one's."""

    def __init__(
        self, source: Checkpoint, folder: Path, max_shard_bytes: int = 10**9, gguf_converter: str | None = None
    ) -> None:
        self.source = source
        self.max_shard_bytes = max_shard_bytes
        self.gguf_converter = gguf_converter
        self.stages = StageStore(folder, 10**12)
        self.checkpoints = folder / "checkpoints"
        self.reports: list[tuple[float, str]] = []
        self.built: list[str] = []
        self.uploads: dict[str, Path] = {}

    def report(self, fraction: float, stage: str) -> None:
        self.reports.append((fraction, stage))

    def calibration(self, params: CalibrationParams, report: Report) -> CalibrationSet:
        return load_calibration(self.source, params, read_documents(params.dataset, Settings()), report)

    def upload(self, file_id: str, purpose: FilePurpose, *, param: str) -> Path:
        return self.uploads[file_id]

    def stage(self, name: str, recipe: dict[str, Any], build: Callable[[Path], None]) -> Path:
        def build_and_note(folder: Path) -> None:
            self.built.append(name)
            build(folder)

        return self.stages.get(name, {"source": str(self.source.path), **recipe}, build_and_note)
