"""What routes ask for. Everything hangs on `app.state`, put there by `create_app`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request

from app.services.comparisons import ComparisonService
from app.services.estimates import EstimateService
from app.services.evaluations import EvaluationService
from app.services.exports import ExportService
from app.services.files import FileService
from app.services.fine_tuning import FineTuningService
from app.services.models import ModelService
from app.services.quantization_jobs import QuantizationJobService
from app.services.recommendations import RecommendationService
from app.services.workers import WorkerService


def _from_state(name: str) -> Any:
    """Depends on what `create_app` put on `app.state` under this name."""

    async def found(request: Request) -> Any:
        return getattr(request.app.state, name)

    return Depends(found)


Comparisons = Annotated[ComparisonService, _from_state("comparisons")]
Estimates = Annotated[EstimateService, _from_state("estimates")]
Evaluations = Annotated[EvaluationService, _from_state("evaluations")]
FineTuning = Annotated[FineTuningService, _from_state("fine_tuning")]
Exports = Annotated[ExportService, _from_state("exports")]
Files = Annotated[FileService, _from_state("files")]
Jobs = Annotated[QuantizationJobService, _from_state("jobs")]
Models = Annotated[ModelService, _from_state("models")]
Recommendations = Annotated[RecommendationService, _from_state("recommendations")]
Workers = Annotated[WorkerService, _from_state("workers")]
