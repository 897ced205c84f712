"""What a quantization job is expected to take, by estimates and by earlier jobs of this installation."""

from __future__ import annotations

from statistics import median
from typing import Any

from sqlalchemy.orm import Session

from app.domain.artifacts import ArtifactKind
from app.domain.estimates import ModelShape, Speed, estimate_artifact, estimate_job
from app.domain.quantization.catalog import parse_method
from app.persistence.artifacts import ArtifactRepository


def predict_job(session: Session, method: dict[str, Any], model: ModelShape) -> dict[str, Any]:
    """Raises UnsupportedArchitecture or IncompatibleModel where the method cannot take the model."""
    spec, params = parse_method(method)
    weights = estimate_artifact(spec, params, model)
    job = estimate_job(spec, params, weights, model, measured_speed(session, spec.name))
    return {"weights_bytes": weights.total_bytes, **job}


def measured_speed(session: Session, method: str) -> Speed | None:
    """Of earlier jobs with this method, in bytes of 16-bit weights per second; the median, proof included."""
    # A training with quantization in mind has the name of such a method too, and takes far longer.
    rows = [row for row in ArtifactRepository(session).list() if row.kind == ArtifactKind.QUANTIZED]
    rates = [
        2 * row.parameter_count / row.seconds
        for row in rows
        if row.method and row.seconds and row.method["type"] == method
    ]
    if not rates:
        return None
    return Speed(bytes_per_second=median(rates), basis=f"{len(rates)} earlier jobs of this installation")
