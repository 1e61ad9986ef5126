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

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

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
    """ASGI application around another one. Starlette's middleware checks the Host header and counts
    bodies; neither it nor gradio refuses a foreign Origin or knows which paths the page needs.

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
        self._inner = self._checked
        if hosts is not None:
            names = [f"[{host}]" if ":" in host else host for host in hosts]  # IPv6
            self._inner = TrustedHostMiddleware(self._checked, names, www_redirect=False)

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def answer(message):
            if message["type"] == "http.response.start":
                message.setdefault("headers", [])
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._inner(scope, receive, answer)

    async def _checked(self, scope, receive, send) -> None:
        try:
            self._check(scope)
            counted = RequestBodyLimitMiddleware(self._with_known_files, self._limit(scope["path"]))
            await counted(scope, receive, send)
        except Refused as error:
            refusal = JSONResponse({"detail": str(error)}, error.status)
            await refusal(scope, receive, send)

    async def _with_known_files(self, scope, receive, send) -> None:
        if scope["path"] == JOIN:
            try:
                body = await Request(scope, receive).body()
            except ClientDisconnect:
                return
            self._check_paths(body)
            receive = _replayed(body, receive)
        await self.app(scope, receive, send)

    def _limit(self, path: str) -> int:
        return self.max_bytes + FORM if path == UPLOAD else SMALL_BODY

    def _check(self, scope) -> None:
        method, path = scope["method"], scope["path"]
        headers = Headers(scope=scope)
        origin = headers.get("origin")  # which scripts of the page send, and no other program
        if None not in (self.hosts, origin) and _host(origin) not in self.hosts:
            raise Refused(403, "another site's page asks")
        if method in ("GET", "HEAD"):
            if path.startswith(FILE):
                self._check_file(path[len(FILE) :], 403)
            elif path not in GET and (not path.startswith(GET_BELOW) or ".." in path):
                raise Refused(404, "there is no such page")
        elif method != "POST" or path not in POST:
            raise Refused(404, "there is no such page")
        declared = headers.get("content-length", "0")  # here the answer can say what is taken
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


def _replayed(body: bytes, receive):
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed():
        return parts.pop() if parts else await receive()

    return replayed
