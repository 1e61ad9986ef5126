# SPDX-License-Identifier: Apache-2.0
"""Runs the page: a folder of its own for files, gradio behind the gate, and an end that leaves
nothing behind."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

STYLE = Path(__file__).with_name("style.css")
SCRIPT = Path(__file__).with_name("keys.js")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A folder for uploads and pictures, gone at the end; gradio learns of it by its environment,
    which it reads at import: enter this first."""
    with tempfile.TemporaryDirectory(prefix="sparse_refine_web_") as name:
        folder = Path(name).resolve()
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
        os.environ["GRADIO_EXAMPLES_CACHE"] = str(folder / "examples")  # else below where it runs
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        yield folder


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Of a name that has several addresses it takes
    the first of IPv4.

    Raises:
        OSError: with what to do about it.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        family, *_, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        return socket.create_server((address[0], port, *address[2:]), family=family)
    except (OSError, OverflowError, UnicodeError) as error:  # of the port, of a name's characters
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"cannot listen on --host {host} --port {port}: {reason}; give another --port (0 takes "
            "any that is free) or --host"
        ) from error


def application(page, folder: Path, max_bytes: int, address: str, name: str):
    """The page behind its gate, an ASGI application.

    Args:
        page: gradio's Blocks. folder: of `private_folder`.
        max_bytes: of an upload. address: that it will be served at. name: the host's, which the
            address was found by, or the address.
    """
    import gradio as gr
    from fastapi import FastAPI

    from .gate import Gate

    no_docs = {"docs_url": None, "redoc_url": None, "openapi_url": None}
    app = gr.mount_gradio_app(
        FastAPI(**no_docs),
        page,
        path="/",
        app_kwargs=no_docs,
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=max_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=_theme(gr),
        css=STYLE.read_text(),
        js=SCRIPT.read_text(),
    )
    # A mounted page is never launched, and gradio checks the paths of inputs in launched ones only.
    page.has_launched = True
    hosts = {*_LOOPBACK, address, name.lower()} if _is_loopback(address) else None
    return Gate(app, folder, max_bytes, hosts)


def serve(app, listener: socket.socket) -> bool:
    """Serve `application` until SIGINT or SIGTERM; whether it came to serving at all.

    A model that is running then goes on in its thread, which ends with the process alone.
    """
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets=None):
            # browsers' open streams are cut off, each with a traceback
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app,
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=1,  # such a stream lasts for as long as somebody looks
    )
    server = Server(config)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"http://{shown}:{port}  (Ctrl-C ends it)", flush=True)
    if not _is_loopback(host):
        print("There is no password: whoever reaches this address can use it.", flush=True)
    # uvicorn raises the signal again when it is done
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        server.run(sockets=[listener])
    return server.started


def _is_loopback(address: str) -> bool:
    """Else others reach it, by names not known here."""
    return ipaddress.ip_address(address).is_loopback


def _theme(gr):
    # fonts of the system: gradio's own themes ask Google for theirs
    return gr.themes.Base(
        primary_hue="emerald",
        neutral_hue="slate",
        radius_size="md",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
