"""A stand-in for the Hugging Face hub: real HTTP on a loopback port, and a count of what was asked.

It implements what huggingface_hub calls to look a model up, to download its files and to upload a model, and what
datasets calls to stream a data set.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from tests.fakes.hub_answers import content, endless, entry, error, sha1, sha256, sibling

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """Serves `folders[repo]` and `datasets[repo]` as the branch main at `commit`. `requests` lists `METHOD path`."""

    folders: dict[str, Path] = field(default_factory=dict)
    datasets: dict[str, Path] = field(default_factory=dict)
    commit: str = COMMIT
    token: str | None = None
    gated: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)  # files whose first byte arrives changed
    failing: set[str] = field(default_factory=set)  # files whose download answers with status 500
    endless: set[str] = field(default_factory=set)  # files that never end, whatever range was asked for
    pause_seconds: float = 0.0  # between the pieces of those
    storage: str = ""  # the address that weights' readers are sent on to
    moved: dict[str, str] = field(default_factory=dict)  # repositories that have another name now
    authorizations: list[str | None] = field(default_factory=list)  # what was sent for each request of a model's file
    requests: list[str] = field(default_factory=list)
    uploads: dict[str, dict[str, bytes]] = field(default_factory=dict)  # repository → file → content
    objects: dict[str, bytes] = field(default_factory=dict)  # large files by SHA-256, before they are committed
    address: str = ""

    def downloads(self) -> list[str]:
        """The names of the files that were fetched."""
        return [line.rsplit("/", 1)[1] for line in self.requests if line.startswith("GET") and "/resolve/" in line]

    def app(self) -> Starlette:
        file = "/{org}/{name}/resolve/{revision}/{file:path}"
        return Starlette(
            routes=[
                Route("/api/models/{org}/{name}", self._model),
                Route("/api/models/{org}/{name}/revision/{revision:path}", self._model),
                Route(file, self._file, methods=["GET", "HEAD"]),
                *self._dataset_routes(),
                *self._upload_routes(),
            ]
        )

    def _dataset_routes(self) -> list[Route]:
        api = "/api/datasets/{org}/{name}"
        file = "/datasets/{org}/{name}/resolve/{revision}/{file:path}"
        return [
            Route(api, self._dataset),
            Route(api + "/revision/{revision:path}", self._dataset),
            Route(api + "/paths-info/{revision}", self._paths, methods=["POST"]),
            Route(api + "/tree/{revision}", self._tree),
            Route(api + "/tree/{revision}/{path:path}", self._tree),
            Route(file, self._dataset_file, methods=["GET", "HEAD"]),
        ]

    def _upload_routes(self) -> list[Route]:
        return [
            Route("/api/repos/create", self._create, methods=["POST"]),
            Route("/api/validate-yaml", self._validate, methods=["POST"]),
            Route("/api/models/{org}/{name}/preupload/{revision}", self._preupload, methods=["POST"]),
            Route("/{org}/{name}.git/info/lfs/objects/batch", self._batch, methods=["POST"]),
            Route("/objects/{sha256}", self._object, methods=["PUT"]),
            Route("/api/models/{org}/{name}/commit/{revision}", self._commit, methods=["POST"]),
        ]

    def _repo(self, request: Request) -> str:
        self.requests.append(f"{request.method} {request.url.path}")
        return f"{request.path_params['org']}/{request.path_params['name']}"

    async def _create(self, request: Request) -> Response:
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return error(401, "")
        body = await request.json()
        repo = f"{body['organization']}/{body['name']}"
        self.uploads.setdefault(repo, {})
        return JSONResponse({"url": f"{self.address}/{repo}", "name": repo, "id": repo})

    async def _validate(self, request: Request) -> Response:
        """The real hub checks the card's metadata; here it has to be there."""
        content = (await request.json())["content"]
        known = content.startswith("---\n") and "library_name:" in content
        return JSONResponse({"errors": [] if known else [{"message": "no metadata"}], "warnings": []})

    async def _preupload(self, request: Request) -> Response:
        self._repo(request)
        files = (await request.json())["files"]
        large = (".safetensors", ".gguf")
        answer = [
            {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(large) else "regular", "oid": None,
             "shouldIgnore": False}
            for file in files
        ]  # fmt: skip
        return JSONResponse({"files": answer})

    async def _batch(self, request: Request) -> Response:
        self._repo(request)
        body = await request.json()
        objects = [
            {"oid": each["oid"], "size": each["size"],
             "actions": {"upload": {"href": f"{self.address}/objects/{each['oid']}"}}}
            for each in body["objects"]
        ]  # fmt: skip
        return JSONResponse({"transfer": "basic", "objects": objects})

    async def _object(self, request: Request) -> Response:
        content = await request.body()
        name = request.path_params["sha256"]
        if hashlib.sha256(content).hexdigest() != name:
            return error(422, "")
        self.objects[name] = content
        return Response()

    async def _commit(self, request: Request) -> Response:
        repo = self._repo(request)
        for line in (await request.body()).splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.uploads[repo][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.uploads[repo][value["path"]] = self.objects[value["oid"]]
        url = f"{self.address}/{repo}/commit/{self.commit}"
        return JSONResponse({"success": True, "commitOid": self.commit, "commitUrl": url, "hookOutput": ""})

    def _dataset_folder(self, request: Request) -> Path:
        return self.datasets[f"{request.path_params['org']}/{request.path_params['name']}"]

    async def _dataset(self, request: Request) -> Response:
        if refusal := self._refusal(request):
            return refusal
        folder = self._dataset_folder(request)
        siblings = [sibling(path, folder) for path in sorted(folder.rglob("*")) if path.is_file()]
        repo = f"{request.path_params['org']}/{request.path_params['name']}"
        return JSONResponse({"id": repo, "sha": self.commit, "siblings": siblings, "tags": []})

    async def _paths(self, request: Request) -> Response:
        if refusal := self._refusal(request):
            return refusal
        folder = self._dataset_folder(request)
        wanted = (await request.form()).getlist("paths") or (await request.json())["paths"]
        return JSONResponse([entry(folder / str(name), folder) for name in wanted if (folder / str(name)).exists()])

    async def _tree(self, request: Request) -> Response:
        if refusal := self._refusal(request):
            return refusal
        folder = self._dataset_folder(request)
        start = folder / request.path_params.get("path", "")
        if not start.is_dir():
            return error(404, "EntryNotFound")
        found = start.rglob("*") if request.query_params.get("recursive", "").lower() == "true" else start.iterdir()
        return JSONResponse([entry(path, folder) for path in sorted(found)])

    async def _dataset_file(self, request: Request) -> Response:
        if refusal := self._refusal(request):
            return refusal
        path = self._dataset_folder(request) / request.path_params["file"]
        if not path.is_file():
            return error(404, "EntryNotFound")
        # It answers requests for a part of the file too, by which data sets are streamed.
        return FileResponse(path, headers={"X-Repo-Commit": self.commit, "ETag": f'"{sha1(path)}"'})

    def _refusal(self, request: Request) -> Response | None:
        self.requests.append(f"{request.method} {request.url.path}")
        repo = f"{request.path_params['org']}/{request.path_params['name']}"
        if repo not in (self.datasets if "/datasets/" in request.url.path else self.folders):
            return error(401, "RepoNotFound")
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return error(401, "RepoNotFound")
        if request.path_params.get("revision", "main") not in ("main", self.commit):
            return error(404, "RevisionNotFound")
        return None

    async def _model(self, request: Request) -> Response:
        if refusal := self._refusal(request):
            return refusal
        repo = f"{request.path_params['org']}/{request.path_params['name']}"
        folder = self.folders[repo]
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        siblings = [sibling(path, folder) for path in files]
        return JSONResponse({"id": repo, "sha": self.commit, "siblings": siblings})

    async def _file(self, request: Request) -> Response:
        self.authorizations.append(request.headers.get("authorization"))
        if refusal := self._refusal(request):
            return refusal
        repo, name = (
            f"{request.path_params['org']}/{request.path_params['name']}",
            request.path_params["file"],
        )
        path = self.folders[repo] / name
        if repo in self.moved:
            return RedirectResponse(request.url.path.replace(repo, self.moved[repo]), status_code=307)
        if repo in self.gated:
            return error(403, "GatedRepo")
        if name in self.failing and request.method == "GET":
            return error(500, "")
        if self.storage and name.endswith(".safetensors"):
            # The library learns from these what it is sent on to.
            linked = {"X-Linked-Etag": f'"{sha256(path)}"', "X-Linked-Size": str(path.stat().st_size)}
            headers = {"X-Repo-Commit": self.commit, **linked}
            return RedirectResponse(self.storage + request.url.path, status_code=302, headers=headers)
        if name in self.endless:
            return endless(path, self.commit, pause_seconds=self.pause_seconds)
        return (
            content(path, self.commit, damaged=name in self.damaged, byte_range=request.headers.get("range", ""))
            if path.is_file()
            else error(404, "EntryNotFound")
        )


@contextmanager
def running(hub: FakeHub) -> Iterator[FakeHub]:
    """Serves the hub in a thread for as long as the block lasts, and sets its address."""
    config = uvicorn.Config(hub.app(), host="127.0.0.1", port=0, log_level="warning")
    server = uvicorn.Server(config)
    socket = config.bind_socket()
    hub.address = f"http://127.0.0.1:{socket.getsockname()[1]}"
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield hub
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        socket.close()
