# SPDX-License-Identifier: Apache-2.0
"""A server of the web demo with a tiny random model, on a free port of the loopback address, and a
client that makes requests by hand, since a browser tidies them up."""

from __future__ import annotations

import http.client
import io
import json
import os
import secrets
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

DEMO = Path(__file__).resolve().parents[2] / "projects" / "SparseRefine" / "demo"
MEGABYTES, MEGAPIXELS = 0.5, 0.2


@pytest.fixture(scope="session")
def web(tmp_path_factory, make_cfg):
    """The running server: `url`, `folder` of its files, `runner`, `example` (its path), `gate`."""
    pytest.importorskip("gradio", reason="gradio is not installed: requirements/web.txt")
    import uvicorn

    from sparse_refine.inference.predictor import SparseRefinePredictor
    from sparse_refine.storage.weights import save_weights
    from sparse_refine.training.trainer import Trainer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("web")
    predictors = {}
    for name, selector in (("tiny", "BudgetSelector"), ("by_itself", "EntropySelector")):
        cfg = make_cfg(
            "MODEL.SPARSE_REFINE.OUTPUT", "labels", "MODEL.SPARSE_REFINE.SELECTOR.NAME", selector,
            "MODEL.SPARSE_REFINE.SELECTOR.FRACTION", 0.25,
            "MODEL.SPARSE_REFINE.SELECTOR.THRESHOLD", 0.0, "DATASETS.CLASS_NAMES", CLASSES,
        )  # fmt: skip
        save_weights(Trainer.build_model(cfg).state_dict(), str(folder / "tiny.safetensors"))
        predictors[name] = SparseRefinePredictor(cfg, str(folder / "tiny.safetensors"))
    example = folder / "example.png"
    Image.fromarray(photograph(96, 128, seed=1)).save(example)

    before = dict(os.environ)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DEMO)
        from web_app import page, server, uploads
        from web_app.runner import Runner

        with server.private_folder() as files:
            limits = uploads.Limits(round(MEGABYTES * 2**20), round(MEGAPIXELS * 1e6), 10_000)
            runner = Runner(predictors, limits)
            listener = server.listen("127.0.0.1", 0)
            gate = server.application(
                page.build(runner, [str(example)]), files, limits.bytes, "127.0.0.1", "Here"
            )
            config = uvicorn.Config(gate, log_level="error", timeout_graceful_shutdown=1)
            running = uvicorn.Server(config)
            thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
            thread.start()
            for _ in range(500):
                if running.started:
                    break
                time.sleep(0.02)
            yield SimpleNamespace(
                url=f"http://127.0.0.1:{listener.getsockname()[1]}",
                folder=files,
                runner=runner,
                example=str(example),
                gate=gate,
            )
            running.should_exit = True
            thread.join()
        os.environ.clear()
        os.environ.update(before)


CLASSES = ["soil", "crop <b>", "weed"]  # the page must not take a name for HTML


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H,W,3) uint8: blobs and thin lines of three colours."""
    from sparse_refine.data.synthetic import generate_field

    return generate_field(height, width, seed)[0]


class Client:
    """One session of a page, as gradio's JavaScript has it."""

    def __init__(self, url: str):
        self.address = urlsplit(url).netloc
        self.session = secrets.token_hex(5)
        self.config = json.loads(self.request("GET", "/config")[1])

    def request(self, method: str, path: str, body=None, headers=None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.address, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def upload(self, content: bytes, name: str = "photo.png") -> tuple[int, object]:
        """The answer to a form with one file: status, and the paths, or the reason."""
        line = b"--edge"
        body = b"\r\n".join([
            line,
            b'Content-Disposition: form-data; name="files"; filename="%s"' % name.encode(),
            b"Content-Type: application/octet-stream", b"", content, line + b"--", b"",
        ])  # fmt: skip
        headers = {"Content-Type": "multipart/form-data; boundary=edge"}
        status, answer = self.request("POST", "/gradio_api/upload", body, headers)
        return status, json.loads(answer)

    def event(self, target: str, data: list, **more) -> dict:
        """Let the event `target`, such as "drop.upload", happen; what its function sent back."""
        status, answer = self.join(target, data, **more)
        assert status == 200, answer
        path = f"/gradio_api/queue/data?session_hash={self.session}"
        connection = http.client.HTTPConnection(self.address, timeout=60)
        connection.request("GET", path)
        try:
            for line in connection.getresponse():
                message = json.loads(line[5:]) if line.startswith(b"data:") else {}
                if message.get("msg") == "process_completed":
                    return message
        finally:
            connection.close()
        raise AssertionError("the stream of events ended early")

    def join(self, target: str, data: list, **more) -> tuple[int, bytes]:
        element, event = target.split(".")
        ids = {c["props"].get("elem_id"): c["id"] for c in self.config["components"]}
        (index,) = (
            dependency["id"]
            for dependency in self.config["dependencies"]
            if [ids[element], event] in [list(pair) for pair in dependency["targets"]]
        )
        body = {"data": data, "fn_index": index, "session_hash": self.session, **more}
        headers = {"Content-Type": "application/json"}
        return self.request("POST", "/gradio_api/queue/join", json.dumps(body), headers)

    def drop(self, path: str) -> dict:
        return self.event("drop.upload", [{"path": path, "meta": {"_type": "gradio.FileData"}}])

    def example(self, index: int = 0) -> dict:
        return self.event("examples.select", [], event_data={"index": index, "value": None})

    def refine(self, percent=25, model="tiny", by_itself=False, opacity=50) -> dict:
        """The page's parts after the budget slider was let go."""
        message = self.event("budget.release", [None, model, percent, by_itself, opacity])
        assert message["success"], message
        names = ("message", "whole", "close", "entropy", "selected", "numbers", "legend")
        return dict(zip(names, message["output"]["data"]))

    def picture(self, value: dict) -> Image.Image:
        status, content = self.request("GET", urlsplit(value["url"]).path)
        assert status == 200
        return Image.open(io.BytesIO(content))


@pytest.fixture
def client(web):
    return Client(web.url)


@pytest.fixture
def open_client():
    return Client
