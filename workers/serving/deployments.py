"""The host's routes for deployments and engines."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from app.domain.errors import BitmillError, EngineFailed, ModelNotFound
from app.domain.serving import CreateDeployment, DeploymentOptions
from app.settings import Settings
from workers.serving.engines.base import Engine
from workers.serving.engines.registry import REGISTRY, load_engine
from workers.serving.models import ModelDirectory
from workers.serving.pool import ModelPool
from workers.serving.served import ServedModel

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1")


@router.get("/deployments")
async def list_deployments(request: Request) -> dict[str, Any]:
    """What is loaded, and what was asked for and is not."""
    pool: ModelPool = request.app.state.pool
    loaded = {view["model"]: view for view in await run_in_threadpool(pool.view)}
    kept = await run_in_threadpool(request.app.state.models.kept)
    asleep = [_unloaded(pool, name, options) for name, options in kept.items() if name not in loaded]
    return {"object": "list", "data": [*loaded.values(), *asleep]}


@router.get("/deployments/{name:path}")
async def get_deployment(request: Request, name: str) -> dict[str, Any]:
    return await _view(request, name)


@router.post("/deployments", status_code=201)
async def create_deployment(request: Request, wanted: CreateDeployment) -> JSONResponse:
    """Keeps the options and loads the model: 201 when it is loaded, 202 at once with wait=false."""
    models: ModelDirectory = request.app.state.models
    options = wanted.options
    model = await run_in_threadpool(models.with_options, wanted.model, options)
    pool: ModelPool = request.app.state.pool
    await run_in_threadpool(pool.planner, model)  # refuses what it cannot do before anything is kept
    if model.adapter is None:
        await run_in_threadpool(models.keep, wanted.model, options)
    loading = _load_in_background(request.app.state.tasks, pool, model)
    if wanted.wait:
        # Whoever asked may leave; the model is loaded all the same.
        await asyncio.shield(loading)
    return JSONResponse(await _view(request, wanted.model), status_code=201 if wanted.wait else 202)


@router.delete("/deployments/{name:path}")
async def delete_deployment(request: Request, name: str) -> dict[str, Any]:
    """Unloads the model, after its requests in flight, and forgets its options."""
    # In this order: a request that comes while others finish must not bring the options back.
    known = await run_in_threadpool(request.app.state.models.forget, name)
    freed = await request.app.state.pool.unload(name)
    if freed is None and not known:
        raise _not_found(name)
    return {"model": name, "object": "deployment", "deleted": True, "freed_bytes": freed or 0}


@router.get("/engines")
async def list_engines(request: Request) -> dict[str, Any]:
    views = await run_in_threadpool(engine_views, request.app.state.settings)
    return {"object": "list", "data": views}


def engine_views(settings: Settings) -> list[dict[str, Any]]:
    """Each engine with what it loads, and why it is not available if it is not."""
    views = []
    for name in REGISTRY:
        engine = load_engine(name, settings)
        problem = _problem(engine)
        views.append({
            "object": "engine", "id": name, "available": problem is None, "problem": problem,
            "version": engine.version() if problem is None else None, **engine.spec.view(),
        })  # fmt: skip
    return views


def _problem(engine: Engine) -> str | None:
    try:
        engine.check_environment()
    except EngineFailed as error:
        return error.message
    return None


async def load_pinned(models: ModelDirectory, pool: ModelPool) -> None:
    """What was pinned is loaded when the host starts, one after the other."""
    for name, options in (await run_in_threadpool(models.kept)).items():
        if not options.pinned:
            continue
        try:
            await pool.load(await run_in_threadpool(models.with_options, name, options))
        except BitmillError as error:
            log.error("the pinned model %s could not be loaded: %s", name, error.message)
        except Exception:  # such as a damaged file, which is no reason to leave the others out
            log.exception("the pinned model %s could not be loaded", name)


def _load_in_background(tasks: set[asyncio.Task[None]], pool: ModelPool, model: ServedModel) -> asyncio.Task[None]:
    task = asyncio.create_task(pool.load(model))
    tasks.add(task)

    def ended(done: asyncio.Task[None]) -> None:
        tasks.discard(done)
        # The deployment's own view tells why; this keeps the reason from being lost when nobody waits.
        if not done.cancelled() and (error := done.exception()):
            log.error("the model %s could not be loaded: %s", model.name, error)

    task.add_done_callback(ended)
    return task


async def _view(request: Request, name: str) -> dict[str, Any]:
    """An adapter has its base's view."""
    views = (await list_deployments(request))["data"]
    found = [view for view in views if view["model"] == name or name in view["adapters"]]
    if not found:
        raise _not_found(name)
    view: dict[str, Any] = found[0]
    return view


def _unloaded(pool: ModelPool, name: str, options: DeploymentOptions) -> dict[str, Any]:
    """The fields of a loaded model's view, where they are known."""
    reason = pool.why_not(name)
    return {
        "object": "deployment",
        "model": name,
        "state": "unloaded" if reason is None else "failed",
        "engine": options.engine or ("remote" if options.remote else None),
        "pinned": options.pinned,
        "keep_alive_seconds": options.keep_alive,
        "expires_at": None,
        "context_length": options.context_length,
        "slots": options.slots,
        "slots_in_use": 0,
        "in_flight": 0,
        "requests": 0,
        "adapters": [],
        "last_used_at": None,
        "load_seconds": None,
        "pid": None,
        "memory": {"estimated": None, "resident_bytes": None},
        "error": reason,
    }


def _not_found(name: str) -> ModelNotFound:
    return ModelNotFound(f"The model {name!r} is not deployed; GET /v1/deployments lists what is", param="model")
