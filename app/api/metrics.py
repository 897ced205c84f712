"""Prometheus metrics: requests are counted as they pass, states are read from the database at each scrape."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.domain.jobs import JobState
from app.persistence.artifacts import ArtifactRepository
from app.persistence.jobs import JobRepository
from app.persistence.patience import is_away
from app.persistence.unit_of_work import Database
from app.services.workers import WorkerService


class Metrics:
    def __init__(self, database: Database, workers: WorkerService) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "bitmill_http_requests",
            "Requests answered.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "bitmill_http_request_seconds", "Time to the end of the answer.", ["method", "route"],
            registry=self.registry,
        )  # fmt: skip
        self._states = StateCollector(database, workers)

    def text(self) -> bytes:
        """What this process counted, or what all that share its port did; and what the database says."""
        registry = CollectorRegistry()
        registry.register(self._states)
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(registry) + generate_latest(self.registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]  # the library's constructor has no types
        return generate_latest(registry) + generate_latest(together)


class StateCollector(Collector):
    """Gauges that say what the database says, however many api processes there are."""

    def __init__(self, database: Database, workers: WorkerService) -> None:
        self.database = database
        self.workers = workers

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering asks no database."""
        return []

    def collect(self) -> Iterable[Metric]:
        """What processes count themselves is told while the database is away, too: just then somebody looks."""
        try:
            found = [*self._states(), self._workers()]
        except SQLAlchemyError as error:
            if not is_away(error):
                raise
            found = []
        up = GaugeMetricFamily("bitmill_database_up", "Whether the database answered.", value=1.0 if found else 0.0)
        return [up, *found]

    def _states(self) -> Iterable[Metric]:
        with self.database.reading() as session:
            jobs = JobRepository(session)
            counts, oldest = jobs.counts(), jobs.oldest_queued_at()
            artifacts = len(ArtifactRepository(session).ids())
        states = GaugeMetricFamily("bitmill_jobs", "Jobs by state.", labels=["state"])
        for state in JobState:
            states.add_metric([state.value], counts.get(state.value, 0))
        yield states
        age = time.time() - oldest if oldest is not None else 0.0
        yield GaugeMetricFamily("bitmill_oldest_queued_job_seconds", "Age of the oldest queued job.", value=age)
        yield GaugeMetricFamily("bitmill_artifacts", "Models in the store.", value=artifacts)

    def _workers(self) -> Metric:
        live = self.workers.live()
        gauge = GaugeMetricFamily("bitmill_workers", "Live workers by queue.", labels=["queue"])
        for queue in ("cpu", "gpu"):
            gauge.add_metric([queue], sum(queue in worker.queues for worker in live))
        return gauge


class MetricsMiddleware:
    """Counts requests by the route's pattern: a path with an id in it would be a series of its own."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def remember_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, remember_status)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            self.metrics.requests.labels(scope["method"], route, str(status)).inc()
            self.metrics.seconds.labels(scope["method"], route).observe(time.perf_counter() - started)
