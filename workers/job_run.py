"""What a job's process offers to the work inside it: progress, calibration data, shared stages."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psutil

from app.domain.files import FILE_ID, FilePurpose
from app.domain.quantization.calibration import SELF, CalibrationParams
from app.domain.quantization.spec import MethodSpec
from app.settings import Settings
from workers.child import Channel
from workers.stages import StageStore
from workers.uploads import find_upload
from workers.versions import versions_of

if TYPE_CHECKING:
    from workers.calibration.texts import Document
    from workers.calibration.windows import CalibrationSet
    from workers.sources.importing import Report
    from workers.sources.resolve import Source


@dataclass(frozen=True)
class Reporter:
    """Maps a part's own progress to the whole job's and sends it."""

    channel: Channel
    span: tuple[float, float]

    def report(self, fraction: float, stage: str) -> None:
        start, end = self.span
        whole = start + (end - start) * min(max(fraction, 0.0), 1.0)
        metrics = {"memory_bytes": psutil.Process().memory_info().rss}
        self.channel.send({"kind": "progress", "fraction": whole, "stage": stage, "metrics": metrics})


@dataclass(frozen=True)
class Run:
    """The JobRun of one quantization."""

    reporter: Reporter
    settings: Settings
    source: Source
    spec: MethodSpec
    stages: StageStore
    documents: list[Document]
    checkpoints: Path

    @property
    def max_shard_bytes(self) -> int:
        return self.settings.max_shard_bytes

    @property
    def gguf_converter(self) -> str | None:
        return self.settings.gguf_converter

    def report(self, fraction: float, stage: str) -> None:
        self.reporter.report(fraction, stage)

    def stage(self, name: str, recipe: dict[str, Any], build: Callable[[Path], None]) -> Path:
        shared = {"source": self.source.fingerprint, "versions": versions_of(self.spec.packages, self.spec.revision)}
        return self.stages.get(name, shared | recipe, build)

    def upload(self, file_id: str, purpose: FilePurpose, *, param: str) -> Path:
        _, path = find_upload(file_id, purpose, self.settings, param=param)
        return path

    def calibration(self, params: CalibrationParams, report: Report) -> CalibrationSet:
        from workers.calibration.loading import load_calibration

        return load_calibration(self.source.checkpoint, params, self.documents, report)


def hold_checkpoints(folder: Path, key: str) -> Path:
    """Where this process keeps what a later attempt may go on from, which only the same work may: `key` names it.

    An attempt that was thought lost may still be writing there; then this one gets a folder of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / f"{key[:32]}.lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until this process ends
    except BlockingIOError:
        return folder / uuid4().hex
    return folder / key[:32]


def read_calibration_documents(params: CalibrationParams | None, settings: Settings) -> list[Document]:
    """What a method will be calibrated with; nothing where it needs none or where the model writes it itself.

    Raises HubUnreachable, InvalidParameter or NotFound.
    """
    if params is None or params.dataset == SELF:
        return []
    from workers.calibration.texts import read_documents, read_file

    if FILE_ID.fullmatch(params.dataset):
        row, path = find_upload(params.dataset, FilePurpose.CALIBRATION, settings, param="method.calibration.dataset")
        return read_file(path, row.filename)
    return read_documents(params.dataset, settings)


def inputs_of(params: CalibrationParams | None, documents: list[Document]) -> dict[str, str]:
    """Fingerprints of what a method reads beside the model, for the artifact's content address."""
    if params is None:
        return {}
    from workers.calibration.texts import fingerprint

    return {"calibration": SELF if params.dataset == SELF else fingerprint(documents)}
