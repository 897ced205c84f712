"""What Prometheus reads from a serving host: what was counted, and what the pool holds at that moment."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

import httpx
from fastapi import Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from workers.serving.deployment import Deployment
from workers.serving.pool import ModelPool

log = logging.getLogger(__name__)

LABELS = ["model_name", "engine"]
ASK_SECONDS = 2.0


async def metrics(request: Request) -> Response:
    pool: ModelPool = request.app.state.pool
    usage = await _cache_usage(pool.deployments, request.app.state.client)
    # In a thread: finding each engine's processes looks at every process of the machine, while answers stream.
    text = await asyncio.to_thread(_text, pool, usage)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


def _text(pool: ModelPool, usage: dict[str, float]) -> bytes:
    momentary = CollectorRegistry()
    momentary.register(PoolCollector(pool, usage))
    return generate_latest(pool.metrics.registry) + generate_latest(momentary)


class PoolCollector(Collector):
    """The pool's state as gauges; `usage` maps models to the used share of their cache, where an engine tells."""

    def __init__(self, pool: ModelPool, usage: dict[str, float]) -> None:
        self.pool = pool
        self.usage = usage

    def collect(self) -> Iterable[Metric]:
        running = GaugeMetricFamily("vllm:num_requests_running", "Requests on the engine.", labels=LABELS)
        waiting = GaugeMetricFamily("vllm:num_requests_waiting", "Requests waiting for a slot.", labels=LABELS)
        cache = GaugeMetricFamily("vllm:kv_cache_usage_perc", "Used share of the cache, 0 to 1.", labels=LABELS)
        resident = GaugeMetricFamily("bitmill_model_resident_bytes", "Memory of its processes.", labels=LABELS)
        for each in self.pool.deployments:
            labels = [each.name, each.engine.spec.name]
            running.add_metric(labels, each.admission.running)
            waiting.add_metric(labels, each.admission.waiting)
            if each.name in self.usage:
                cache.add_metric(labels, self.usage[each.name])
            if each.running is not None and (size := each.running.resident_bytes()) is not None:
                resident.add_metric(labels, size)
        return [running, waiting, cache, resident]


async def _cache_usage(deployments: list[Deployment], client: httpx.AsyncClient) -> dict[str, float]:
    shares = await asyncio.gather(*(_share(each, client) for each in deployments))
    return {each.name: share for each, share in zip(deployments, shares, strict=True) if share is not None}


async def _share(deployment: Deployment, client: httpx.AsyncClient) -> float | None:
    """None where the engine does not tell, is loading or too busy to answer in time."""
    path, running = deployment.engine.cache_usage_path, deployment.running
    if path is None or running is None or deployment.load_seconds is None:
        return None
    try:
        answer = await client.get(running.url(path), headers=running.headers, timeout=ASK_SECONDS)
        answer.raise_for_status()
        return deployment.engine.cache_usage(answer.text, deployment.options)
    except httpx.HTTPError:
        return None
    except (ValueError, KeyError, TypeError) as error:  # another version's answer: the other numbers are still right
        log.warning("the engine of %s tells its cache's use in a form that is not known: %r", deployment.name, error)
        return None
