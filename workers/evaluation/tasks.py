"""Tasks of lm-evaluation-harness, asked of the completions route of a serving host of our own.

https://github.com/EleutherAI/lm-evaluation-harness. The host is the one that clients talk to, so that every engine
answers alike: the harness needs prompts echoed with the log-probabilities of their tokens.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import uvicorn
from aiohttp import ClientResponseError
from fastapi import FastAPI
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from starlette.types import ASGIApp, Receive, Scope, Send

from app.domain.errors import EvaluationFailed, InvalidParameter, ModelNotFound
from app.domain.evaluation import EvaluationRequest, TaskFigures, TaskMetric
from app.domain.serving import DeploymentOptions
from app.settings import Settings
from workers.serving.host import create_host
from workers.serving.served import ServedModel

Report = Callable[[float, str], None]

START_SECONDS: Final = 60.0


class OneModel:
    """A directory that knows one model, with the options that it was given."""

    def __init__(self, model: ServedModel) -> None:
        self.model = model

    def find(self, name: str) -> ServedModel:
        if name != self.model.name:
            raise ModelNotFound(f"only {self.model.name!r} is served while it is evaluated", param="model")
        return self.model

    def kept(self) -> dict[str, DeploymentOptions]:
        return {}


class Told:
    """What was said last of the progress. A task may take hours, and says nothing itself: each answer says it again."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._last = (0.0, "loading the model")

    def say(self, fraction: float, stage: str) -> None:
        self._last = (fraction, stage)
        self.again()

    def again(self) -> None:
        self._report(*self._last)


class AnswerWatch:
    """ASGI middleware that tells of each request that was answered."""

    def __init__(self, app: ASGIApp, told: Told) -> None:
        self.app = app
        self.told = told

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)
        if scope["type"] == "http":
            self.told.again()


def run_tasks(
    model: ServedModel, tokenizer: Path, request: EvaluationRequest, settings: Settings, report: Report
) -> dict[str, TaskFigures]:
    """Raises InvalidParameter for a task that is not known, EvaluationFailed for one that cannot be run."""
    include = str(settings.tasks_dir) if settings.tasks_dir else None
    manager = TaskManager(include_path=include)
    for task in request.tasks:
        if task not in manager.all_tasks:
            raise InvalidParameter(
                f"lm-evaluation-harness has no task {task!r}; `lm_eval ls tasks` lists them, and BITMILL_TASKS_DIR "
                "names a folder with more",
                param="tasks",
            )
    host = create_host(settings)
    host.state.models = OneModel(model)
    found = {}
    told = Told(report)
    host.add_middleware(AnswerWatch, told=told)
    with _served(host) as url:
        arguments = {
            "model": model.name, "base_url": f"{url}/v1/completions", "tokenizer": str(tokenizer),
            "tokenizer_backend": "huggingface", "tokenized_requests": True, "num_concurrent": settings.serving_slots,
            "max_retries": 1, "timeout": int(settings.serving_total_timeout_seconds),
        }  # fmt: skip
        for number, task in enumerate(request.tasks):
            told.say(number / len(request.tasks), f"answering {task}")
            try:
                found[task] = _run(task, arguments, manager, request.task_limit)
            except ClientResponseError as error:
                raise EvaluationFailed(
                    f"the task {task!r} could not be asked ({error.status}; the worker's log of this job has the "
                    "reason). Tasks that score given answers need the log-probabilities of prompts, which llama.cpp "
                    "does not tell: choose tasks that generate, or evaluate the safetensors artifact of a method",
                    param="tasks",
                ) from error
    return found


def _run(task: str, arguments: dict[str, Any], manager: TaskManager, limit: int | None) -> TaskFigures:
    answer = simple_evaluate(
        model="local-completions", model_args=arguments, tasks=[task], limit=limit, task_manager=manager,
        bootstrap_iters=1000, log_samples=False,
    )  # fmt: skip
    if answer is None or task not in answer["results"]:
        raise EvaluationFailed(f"the task {task!r} gave no result; the worker's log of this job has the reason")
    results = answer["results"][task]
    documents = answer.get("n-samples", {}).get(task, {}).get("effective", 0)
    return TaskFigures(
        version=str(answer.get("versions", {}).get(task, "")), documents=documents, metrics=_metrics(results)
    )


def _metrics(results: dict[str, Any]) -> dict[str, TaskMetric]:
    """From the harness's flat keys, `metric,filter` and `metric_stderr,filter`."""
    found = {}
    for key, value in results.items():
        name, comma, filter_ = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = results.get(f"{name}_stderr,{filter_}")
        shown = name if filter_ == "none" else f"{name} ({filter_})"
        found[shown] = TaskMetric(value=value, standard_error=error if isinstance(error, int | float) else None)
    return found


@contextmanager
def _served(app: FastAPI) -> Iterator[str]:
    """The host on a free port of the loopback address; engines end with it."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + START_SECONDS
    while not server.started:
        if time.monotonic() > deadline or not thread.is_alive():
            raise EvaluationFailed("the serving host for the tasks did not start; the job's log has the reason")
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)
