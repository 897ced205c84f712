"""A thin client for what OpenAI's own client has no words for: quantization jobs, methods, workers; and for uploads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

Json = dict[str, Any]

PIECE_BYTES = 1024**2
# Jobs that are no quantizations, by what their ids begin with.
ROUTES = {"eval": "/v1/evaluations", "ftjob": "/v1/fine_tuning/jobs"}


class RequestFailed(Exception):
    """The server answered with an error object, kept in `error`."""

    def __init__(self, status: int, error: Json) -> None:
        super().__init__(f"{error.get('message')} (HTTP {status}, {error.get('code')})")
        self.status = status
        self.error = error


class BitmillClient:
    """`with BitmillClient("http://127.0.0.1:8000") as client: client.submit(...)`."""

    def __init__(self, base_url: str, api_key: str | None = None, transport: httpx.BaseTransport | None = None) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=base_url, headers=headers, timeout=60, transport=transport)

    def __enter__(self) -> BitmillClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def submit(
        self, model: str, method: Json, *, suffix: str | None = None, gate: str = "on", contract: Json | None = None
    ) -> Json:
        """POST /v1/quantization/jobs. Raises RequestFailed."""
        optional = {"suffix": suffix, "contract": contract}
        body = {"model": model, "method": method, "quality": {"gate": gate}}
        body |= {name: value for name, value in optional.items() if value}
        return self._request("POST", "/v1/quantization/jobs", json=body)

    def job(self, job_id: str) -> Json:
        """A job of any kind, by its id."""
        return self._request("GET", _path(job_id))

    def jobs(self, *, limit: int = 20) -> list[Json]:
        return self._list("/v1/quantization/jobs", params={"limit": limit})

    def cancel(self, job_id: str) -> Json:
        return self._request("POST", f"{_path(job_id)}/cancel")

    def fine_tune(self, model: str, training_file: str, **options: Any) -> Json:
        """POST /v1/fine_tuning/jobs. Raises RequestFailed."""
        return self._request(
            "POST", "/v1/fine_tuning/jobs", json={"model": model, "training_file": training_file, **options}
        )

    def pause(self, job_id: str) -> Json:
        return self._request("POST", f"{_path(job_id)}/pause")

    def resume(self, job_id: str) -> Json:
        return self._request("POST", f"{_path(job_id)}/resume")

    def follow(self, job_id: str) -> Iterator[Json]:
        """A job's events as they come, until it has ended."""
        path = f"{_path(job_id)}/events"
        with self._http.stream("GET", path, params={"stream": "true"}) as response:
            if response.is_error:
                response.read()
            _raise_for_error(response)
            for line in response.iter_lines():
                if line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))

    def evaluate(self, model: str, **options: Any) -> Json:
        """POST /v1/evaluations. Raises RequestFailed."""
        return self._request("POST", "/v1/evaluations", json={"model": model, **options})

    def estimate(self, model: str, method: Json, **options: Any) -> Json:
        """POST /v1/estimates. Raises RequestFailed."""
        return self._request("POST", "/v1/estimates", json={"model": model, "method": method, **options})

    def recommend(self, model: str, **options: Any) -> Json:
        """POST /v1/recommendations. Raises RequestFailed."""
        return self._request("POST", "/v1/recommendations", json={"model": model, **options})

    def compare(self, model: str, **options: Any) -> Json:
        """POST /v1/comparisons. Raises RequestFailed."""
        return self._request("POST", "/v1/comparisons", json={"model": model, **options})

    def comparison(self, comparison_id: str) -> Json:
        return self._request("GET", f"/v1/comparisons/{comparison_id}")

    def comparisons(self, *, limit: int = 20) -> list[Json]:
        return self._list("/v1/comparisons", params={"limit": limit})

    def cancel_comparison(self, comparison_id: str) -> Json:
        return self._request("POST", f"/v1/comparisons/{comparison_id}/cancel")

    def comparison_report(self, comparison_id: str, format_: str = "html") -> str:
        """What has been measured so far, as json, csv, markdown or html."""
        response = self._http.get(f"/v1/comparisons/{comparison_id}/report", params={"format": format_})
        _raise_for_error(response)
        return response.text

    def methods(self) -> list[Json]:
        return self._list("/v1/quantization/methods")

    def models(self) -> list[Json]:
        return self._list("/v1/models")

    def model(self, name: str) -> Json:
        return self._request("GET", f"/v1/models/{quote(name, safe='')}")

    def model_files(self, name: str) -> list[Json]:
        """The files of a result, each with name, size and SHA-256."""
        return self._list(f"/v1/models/{quote(name, safe='')}/files")

    def download(self, model: str, file: str, *, start: int = 0) -> Iterator[bytes]:
        """A file's content from byte `start` on, in pieces. Raises RequestFailed."""
        path = f"/v1/models/{quote(model, safe='')}/files/{quote(file)}"
        headers = {"range": f"bytes={start}-"} if start else {}
        with self._http.stream("GET", path, headers=headers) as response:
            if response.is_error:
                response.read()
            _raise_for_error(response)
            # A card is short and comes whole, whatever was asked for.
            skipped = 0 if response.status_code == httpx.codes.PARTIAL_CONTENT else start
            for piece in response.iter_bytes(PIECE_BYTES):
                yield piece[skipped:]
                skipped = max(skipped - len(piece), 0)

    def delete_model(self, name: str) -> Json:
        return self._request("DELETE", f"/v1/models/{quote(name, safe='')}")

    def upload_file(self, path: Path, purpose: str) -> Json:
        """POST /v1/files, read from the disk as it is sent. Raises RequestFailed."""
        # The server answers after the whole file is safely on its disk, which may take minutes.
        timeout = httpx.Timeout(60, read=None)
        with path.open("rb") as file:
            form = {"files": {"file": (path.name, file)}, "data": {"purpose": purpose}}
            return self._request("POST", "/v1/files", timeout=timeout, **form)

    def files(self, *, purpose: str | None = None, limit: int = 100) -> list[Json]:
        return self._list("/v1/files", params={"limit": limit} | ({"purpose": purpose} if purpose else {}))

    def delete_file(self, file_id: str) -> Json:
        return self._request("DELETE", f"/v1/files/{file_id}")

    def workers(self) -> list[Json]:
        return self._list("/v1/workers")

    def deployments(self) -> list[Json]:
        return self._list("/v1/deployments")

    def deployment(self, model: str) -> Json:
        return self._request("GET", f"/v1/deployments/{quote(model, safe='')}")

    def deploy(self, model: str, **options: Any) -> Json:
        """POST /v1/deployments; returns when the model is loaded. Raises RequestFailed."""
        timeout = httpx.Timeout(60, read=None)
        return self._request("POST", "/v1/deployments", json={"model": model, **options}, timeout=timeout)

    def undeploy(self, model: str) -> Json:
        """Returns when the model's requests in flight have finished and it is unloaded. Raises RequestFailed."""
        path = f"/v1/deployments/{quote(model, safe='')}"
        return self._request("DELETE", path, timeout=httpx.Timeout(60, read=None))

    def engines(self) -> list[Json]:
        return self._list("/v1/engines")

    def readiness(self) -> Json:
        return self._request("GET", "/readyz")

    def _list(self, path: str, params: dict[str, Any] | None = None) -> list[Json]:
        items: list[Json] = self._request("GET", path, params=params)["data"]
        return items

    def _request(self, method: str, path: str, **arguments: Any) -> Json:
        response = self._http.request(method, path, **arguments)
        _raise_for_error(response)
        body: Json = response.json()
        return body


def _path(job_id: str) -> str:
    """Where a job is found: its id begins with its kind."""
    return f"{ROUTES.get(job_id.partition('-')[0], '/v1/quantization/jobs')}/{job_id}"


def _raise_for_error(response: httpx.Response) -> None:
    if not response.is_error:
        return
    try:
        error = response.json()["error"]
    except (json.JSONDecodeError, KeyError, TypeError):  # not ours: a proxy's page, say
        error = {"message": response.text[:500], "code": "http_error"}
    raise RequestFailed(response.status_code, error)
