# SPDX-License-Identifier: Apache-2.0
"""What stands between the network and gradio.

gradio serves many things that this page has no use for: a proxy, a fetcher of URLs, recordings,
links to stored states, an editor of its own source. Here a request passes only where the page needs
it, and its body is counted before anything reads it. Files are served, and taken as input, out of
one folder, that of this run's uploads and pictures.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

GET = {
    "/",
    "/config",
    "/favicon.ico",
    "/manifest.json",
    "/theme.css",
    "/gradio_api/queue/data",
    "/gradio_api/startup-events",
    "/gradio_api/upload_progress",
}
GET_BELOW = ("/assets/", "/static/", "/svelte/", "/gradio_api/heartbeat/")
FILE = "/gradio_api/file="
JOIN, UPLOAD = "/gradio_api/queue/join", "/gradio_api/upload"
POST = {JOIN, UPLOAD, "/gradio_api/cancel", "/gradio_api/reset"}

SMALL_BODY = 256 * 1024  # bytes of a request that is no upload
FORM = 64 * 1024  # what a form adds to the file in it
KEPT_UPLOADS = 50  # the folder holds as many files of the largest size before it takes no more

HEADERS = {
    # gradio's page runs inline scripts, and makes some of text; but nothing comes from another
    # place, and nothing goes to one
    "content-security-policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Refused(Exception):
    """A request that goes no further: status code and reason."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


class Gate:
    """ASGI application around another one.

    Args:
        app: gradio's.
        folder: the only place of files.
        max_bytes: of an uploaded file.
        hosts: names that a browser may know this server by; None: any. On the loopback address they
            stop foreign pages, whose name was made to point there or which send forms to it.
    """

    def __init__(self, app, folder: Path, max_bytes: int, hosts: set[str] | None):
        self.app = app
        self.folder = folder.resolve()
        self.max_bytes = max_bytes
        self.hosts = hosts

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        started, too_much = False, None

        async def answer(message):
            nonlocal started
            if too_much is not None and not started:
                return  # the app's own answer to an upload that was broken off
            if message["type"] == "http.response.start":
                started = True
                fixed = [(key.encode(), value.encode()) for key, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *fixed]}
            await send(message)

        async def counted():
            nonlocal seen, too_much
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                too_much = Refused(413, self._too_large(scope["path"]))
                raise too_much
            return message

        seen, limit = 0, self._limit(scope["path"])
        try:
            self._check(scope)
            source = counted
            if scope["path"] == JOIN:
                body = await _whole_body(counted)
                self._check_paths(body)
                source = _replayed(body, receive)
            await self.app(scope, source, answer)
        except Refused as error:
            if started:
                raise
            too_much = None
            await _refuse(answer, error)

    def _limit(self, path: str) -> int:
        return self.max_bytes + FORM if path == UPLOAD else SMALL_BODY

    def _check(self, scope) -> None:
        method, path = scope["method"], scope["path"]
        headers = dict(scope["headers"])
        host = _host("//" + headers.get(b"host", b"").decode("latin-1"))
        if self.hosts is not None:
            if host not in self.hosts:
                raise Refused(421, f"this server is not known as {host!r}")
            origin = headers.get(b"origin")  # which scripts of the page send, and no other program
            if origin is not None and _host(origin.decode("latin-1")) not in self.hosts:
                raise Refused(403, "another site's page asks")
        if method in ("GET", "HEAD"):
            if path.startswith(FILE):
                self._check_file(path[len(FILE) :], 403)
            elif path not in GET and (not path.startswith(GET_BELOW) or ".." in path):
                raise Refused(404, "there is no such page")
        elif method != "POST" or path not in POST:
            raise Refused(404, "there is no such page")
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self._limit(path):
            raise Refused(413, self._too_large(path))
        if path == UPLOAD and self._held() > KEPT_UPLOADS * self.max_bytes:
            raise Refused(507, "the server holds as many uploads as it can; try again later")

    def _too_large(self, path: str) -> str:
        if path == UPLOAD:
            return f"the file is too large: at most {self.max_bytes / 2**20:g} MB are taken"
        return f"the request is too large: at most {SMALL_BODY} bytes"

    def _held(self) -> int:
        total = 0
        for folder, _, names in os.walk(self.folder):
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # gradio deletes old ones meanwhile
                    total += os.lstat(os.path.join(folder, name)).st_size
        return total

    def _check_paths(self, body: bytes) -> None:
        """Each file that an event names is one of this run's: gradio would also fetch a URL."""
        try:
            content = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Refused(400, "the request is no JSON") from error
        for item in _objects(content):
            if item.get("path") is not None:
                self._check_file(item["path"], 400)

    def _check_file(self, path, status: int) -> None:
        try:
            inside = self.folder in Path(os.path.realpath(path)).parents and os.path.isfile(path)
        except (TypeError, ValueError):  # no text; a NUL
            inside = False
        if not inside:
            raise Refused(status, "there is no such file among those of this server")


def _host(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def _objects(content) -> Iterator[dict]:
    waiting = [content]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield item
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item


async def _whole_body(receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "the request ended early")
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def _replayed(body: bytes, receive):
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed():
        return parts.pop() if parts else await receive()

    return replayed


async def _refuse(send, error: Refused) -> None:
    body = json.dumps({"detail": str(error)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
