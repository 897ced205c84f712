"""Estimates: sizes, memory and times from headers alone."""

from __future__ import annotations

from typing import Any

from app.domain.artifacts import ArtifactFormat, ArtifactKind
from app.domain.errors import InvalidParameter, SourceNotFound
from app.domain.estimates import (
    EstimateRequest,
    ModelShape,
    estimate_artifact,
    estimate_job,
    estimate_loaded,
)
from app.domain.model_names import SourceKind, parse_model_name
from app.domain.quantization.catalog import dump_method, parse_method
from app.persistence.artifacts import ArtifactRepository
from app.persistence.predictions import measured_speed
from app.persistence.unit_of_work import Database
from app.settings import Settings
from app.storage.artifacts import locate
from app.storage.checkpoints import inspect_checkpoint
from app.storage.hub_headers import read_hub_model
from app.storage.shapes import shape_of_checkpoint
from app.storage.sources import locate_local


class EstimateService:
    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.settings = settings

    def estimate(self, request: EstimateRequest) -> dict[str, Any]:
        """Raises UnknownMethod, InvalidParameter, NotFound, InvalidRequest or HubUnreachable."""
        spec, params = parse_method(request.method)
        model = self.shape_of(request.model)
        spec.require_architecture(model.architecture, widened=self.settings.is_given(spec.widened_by))
        weights = estimate_artifact(spec, params, model)
        loaded = estimate_loaded(
            spec, weights, model, context_length=request.context_length, concurrency=request.concurrency
        )
        with self.database.reading() as session:
            speed = measured_speed(session, spec.name)
        return {
            "object": "estimate",
            "model": request.model,
            "method": dump_method(spec, params),
            "context_length": request.context_length,
            "concurrency": request.concurrency,
            "weights_bytes": weights.total_bytes,
            "memory": loaded.view(),
            "job": estimate_job(spec, params, weights, model, speed),
        }

    def shape_of(self, name: str) -> ModelShape:
        """From the files on this disk, else from the hub's headers."""
        with self.database.reading() as session:
            row = ArtifactRepository(session).find(name)
        if row is not None and row.kind == ArtifactKind.QUANTIZED:
            raise InvalidParameter(
                f"model {name!r} is quantized already; estimate for its source {row.source!r}", param="model"
            )
        if row is not None and row.format == ArtifactFormat.ADAPTER and row.source is not None:
            return self.shape_of(row.source)  # merged, it has the tensors of its original
        if row is not None and locate(row, self.settings).is_dir():
            return shape_of_checkpoint(inspect_checkpoint(locate(row, self.settings)))
        parsed = parse_model_name(name)
        folder = locate_local(parsed, self.settings)
        if folder is not None and folder.is_dir():
            return shape_of_checkpoint(inspect_checkpoint(folder))
        if parsed.kind is SourceKind.HUB:
            return read_hub_model(parsed, self.settings)
        raise SourceNotFound(
            f"model {name!r} has not been unpacked yet, so that its tensors are not known; submit a job with it first",
            param="model",
        )
