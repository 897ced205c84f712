"""The process of the fake engine: a real HTTP server that speaks OpenAI's shapes and holds no model.

What happens is written to FAKE_ENGINE_EVENTS, a line each. A request's `user` field tells it what to do:
`crash` ends the process, `refuse` is a 400, `fail` a 500, `silent` never begins to answer, and a path is waited
for before the answer ends. Usage is always 3 prompt tokens and 2 generated ones.
"""

from __future__ import annotations

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
CHOICE = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "é"}}
EVENTS = Path(os.environ["FAKE_ENGINE_EVENTS"])


def note(event: str) -> None:
    with EVENTS.open("a") as file:
        file.write(f"{event}\n")


class Handler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: what matters is in the events."""

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self.reply(200, {"data": [{"id": "engine-name"}]})
        else:
            self.reply(200, {"status": "ok", **({"clock": time.monotonic()} if self.path == "/clock" else {})})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.headers["authorization"] != f"Bearer {os.environ['FAKE_ENGINE_KEY']}":
            self.reply(401, {"error": {"message": "wrong key"}})
            return
        if self.path == "/adapters":
            note(f"adapter {body['name']} {' '.join(body['folders'])}")
            broken = not all(Path(folder).exists() for folder in body["folders"])
            self.reply(400 if broken else 200, {"error": {"message": "no such folder"}} if broken else {})
            return
        note(f"request {body['model']} {self.headers.get('connection', 'none')}")
        prompts = body["prompt"] if isinstance(body.get("prompt"), list) else [None]
        note(f"choices {len(prompts) * body.get('n', 1)}")
        order = body.get("user")
        if order == "crash":
            sys.stderr.write("the fake engine crashes as it was told\n")
            sys.stderr.flush()
            os._exit(3)
        if order == "refuse":
            self.reply(400, {"error": {"code": 400, "message": "no", "type": "exceed_context_size_error"}})
        elif order == "fail":
            self.reply(500, {"error": {"code": 500, "message": "/a/secret/path broke", "type": "server_error"}})
        elif order == "silent":
            self.rfile.read(1)  # until the client hangs up
        elif body.get("stream"):
            self.stream(order, usage=(body.get("stream_options") or {}).get("include_usage", False))
        else:
            while order and not Path(order).exists():
                time.sleep(0.01)
            self.reply(200, {"id": "x", "model": "engine-name", "choices": [CHOICE],
                             "usage": USAGE, "pid": os.getpid()})  # fmt: skip

    def do_DELETE(self) -> None:
        note(f"unload {unquote(self.path)}")
        self.reply(200, {})

    def stream(self, order: str | None, *, usage: bool) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        try:
            self.event({"model": "engine-name", "choices": [{"delta": {"content": "é"}}]})
            while order and not Path(order).exists():
                self.event({"model": "engine-name", "choices": []})
                time.sleep(0.01)
            self.event({"model": "engine-name", "choices": [{"delta": {}, "finish_reason": "length"}], "usage": None})
            if usage:
                self.event({"model": "engine-name", "choices": [], "usage": USAGE})
            self.wfile.write(b"data: [DONE]\n\n")
        except (BrokenPipeError, ConnectionResetError):
            note("disconnected")

    def event(self, value: dict[str, Any]) -> None:
        # In two parts, which a proxy must not take for two events.
        data = f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()
        self.wfile.write(data[:20])
        self.wfile.flush()
        self.wfile.write(data[20:])
        self.wfile.flush()

    def reply(self, status: int, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    note(f"start {os.getpid()}")
    if Path(os.environ["FAKE_ENGINE_BROKEN"]).exists():
        sys.exit("the fake engine cannot load")
    gate = os.environ["FAKE_ENGINE_LOAD_GATE"]
    while gate and not Path(gate).exists():
        time.sleep(0.01)
    ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()


if __name__ == "__main__":
    main()
