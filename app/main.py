"""`create_app` wires the API together; nothing else does."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

import app as package
from app.api import comparisons, evaluations, operations, planning, quantization
from app.api.keys import RequireKey
from app.api.metrics import Metrics, MetricsMiddleware
from app.api.openai import completions, deployments, files, fine_tuning, models
from app.body_limit import BodyLimit
from app.error_handlers import install_error_handlers
from app.installation import checked_installation
from app.persistence.unit_of_work import Database
from app.processes import die_with_parent, keep_what_is_loaded
from app.queue.configuration import create_celery
from app.queue.dispatcher import CeleryDispatcher, Dispatcher
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
from app.serving_client.client import ServingClient
from app.settings import Settings, get_settings


def create_app(
    settings: Settings | None = None,
    *,
    dispatcher: Dispatcher | None = None,
    serving: ServingClient | None = None,
) -> FastAPI:
    """The API. Tests pass their own settings, dispatcher or serving client."""
    settings = settings or get_settings()
    app = FastAPI(title="Bitmill", version=package.__version__, lifespan=_lifespan)
    database = Database(settings.database)
    workers = WorkerService(database, settings)
    app.state.settings = settings
    app.state.database = database
    app.state.workers = workers
    app.state.files = FileService(database, settings)
    app.state.exports = ExportService(database, settings)
    app.state.models = ModelService(database, settings)
    dispatcher = dispatcher or CeleryDispatcher(create_celery(settings))
    app.state.jobs = QuantizationJobService(database, settings, dispatcher, workers)
    app.state.evaluations = EvaluationService(database, settings, dispatcher, workers)
    app.state.fine_tuning = FineTuningService(database, settings, dispatcher, workers)
    app.state.comparisons = ComparisonService(database, dispatcher, workers, app.state.evaluations)
    app.state.estimates = EstimateService(database, settings)
    app.state.recommendations = RecommendationService(database, app.state.estimates, workers)
    app.state.serving = serving or ServingClient(settings.serving_url)
    app.state.metrics = Metrics(database, workers)
    # The last is asked first: what is refused is counted too, and whoever has no key sends no body.
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, without=frozenset({files.UPLOADS}))
    app.add_middleware(RequireKey, keys=settings.api_keys)
    app.add_middleware(MetricsMiddleware, metrics=app.state.metrics)
    install_error_handlers(app)
    _include_routers(app)
    return app


def _include_routers(app: FastAPI) -> None:
    app.include_router(operations.health)
    ours = (quantization, evaluations, comparisons, planning, operations)
    # Routes are tried in this order, and completions are asked for most.
    for module in (completions, deployments, files, models, fine_tuning, *ours):
        app.include_router(module.router)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    if app.state.settings.api_processes > 1:
        # The process that holds the port may be killed outright; none of those that share it may stay.
        die_with_parent(os.getppid())
    keep_what_is_loaded()
    async with checked_installation(app.state.database, app.state.settings):
        yield
    await app.state.serving.aclose()
    app.state.database.close()
