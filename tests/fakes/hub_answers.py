"""What the stand-in for the hub answers with."""

from __future__ import annotations

import hashlib
import itertools
import re
import time
from collections.abc import Iterator
from pathlib import Path

from starlette.responses import JSONResponse, Response, StreamingResponse

PIECE_BYTES = 64 * 1024


def sibling(path: Path, folder: Path) -> dict[str, object]:
    data = path.read_bytes()
    found: dict[str, object] = {
        "rfilename": path.relative_to(folder).as_posix(),
        "size": len(data),
        "blobId": sha1(path),
    }
    if path.suffix == ".safetensors":
        found["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return found


def entry(path: Path, folder: Path) -> dict[str, object]:
    """As the hub's list of a repository's files has it."""
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return {
            "type": "directory",
            "path": name,
            "oid": hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest(),
        }
    return {"type": "file", "path": name, "size": path.stat().st_size, "oid": sha1(path)}


def sha1(path: Path) -> str:
    return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def content(path: Path, commit: str, *, damaged: bool, byte_range: str = "") -> Response:
    data = path.read_bytes()
    if wanted := re.fullmatch(r"bytes=(\d+)-(\d+)", byte_range):
        return Response(data[int(wanted[1]) : int(wanted[2]) + 1], status_code=206, headers={"X-Repo-Commit": commit})
    headers = {
        "X-Repo-Commit": commit,
        "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
        "Accept-Ranges": "bytes",
    }
    return Response(bytes([data[0] ^ 1]) + data[1:] if damaged else data, headers=headers)


def error(status: int, code: str) -> Response:
    return JSONResponse({"error": code}, status_code=status, headers={"X-Error-Code": code})


def endless(path: Path, commit: str, *, pause_seconds: float = 0.0) -> Response:
    """The file and then zeros for ever; in pieces of a few bytes where it pauses after each."""

    def pieces() -> Iterator[bytes]:
        data = path.read_bytes()
        size = 8 if pause_seconds else PIECE_BYTES
        starts = range(0, len(data), size)
        for piece in itertools.chain((data[start : start + size] for start in starts), itertools.repeat(bytes(size))):
            yield piece
            time.sleep(pause_seconds)

    return StreamingResponse(pieces(), headers={"X-Repo-Commit": commit})
