"""What routes ask for. Everything hangs on `app.state`, put there by `create_app`."""

from __future__ import annotations

import secrets
from typing import Annotated

from fastapi import Depends, Request

from app.domain.errors import AuthenticationFailed
from app.services.estimates import EstimateService
from app.services.evaluations import EvaluationService
from app.services.files import FileService
from app.services.models import ModelService
from app.services.quantization_jobs import QuantizationJobService
from app.services.recommendations import RecommendationService
from app.services.workers import WorkerService


def get_job_service(request: Request) -> QuantizationJobService:
    service: QuantizationJobService = request.app.state.jobs
    return service


def get_estimate_service(request: Request) -> EstimateService:
    service: EstimateService = request.app.state.estimates
    return service


def get_recommendation_service(request: Request) -> RecommendationService:
    service: RecommendationService = request.app.state.recommendations
    return service


def get_evaluation_service(request: Request) -> EvaluationService:
    service: EvaluationService = request.app.state.evaluations
    return service


def get_file_service(request: Request) -> FileService:
    service: FileService = request.app.state.files
    return service


def get_model_service(request: Request) -> ModelService:
    service: ModelService = request.app.state.models
    return service


def get_worker_service(request: Request) -> WorkerService:
    service: WorkerService = request.app.state.workers
    return service


async def require_api_key(request: Request) -> None:
    """Demands one of the configured keys, if any are. Compares in constant time.

    Asynchronous although it waits for nothing: FastAPI would visit a thread for it, at every request.
    """
    keys: tuple[str, ...] = request.app.state.settings.api_keys
    if not keys:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not any(secrets.compare_digest(given.encode(), key.encode()) for key in keys):
        raise AuthenticationFailed("the API key is missing or wrong; send `Authorization: Bearer <key>`")


Estimates = Annotated[EstimateService, Depends(get_estimate_service)]
Evaluations = Annotated[EvaluationService, Depends(get_evaluation_service)]
Files = Annotated[FileService, Depends(get_file_service)]
Jobs = Annotated[QuantizationJobService, Depends(get_job_service)]
Models = Annotated[ModelService, Depends(get_model_service)]
Recommendations = Annotated[RecommendationService, Depends(get_recommendation_service)]
Workers = Annotated[WorkerService, Depends(get_worker_service)]
