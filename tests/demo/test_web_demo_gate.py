# SPDX-License-Identifier: Apache-2.0
"""What the web demo's server does not take and does not give away."""

from __future__ import annotations

import http.client
import json
import re
from pathlib import Path

import pytest

# of gradio 6.31 with pandas 3
pytestmark = pytest.mark.filterwarnings("ignore:.*(silent_downcasting|copy keyword)")

ROOT = Path(__file__).resolve().parents[2]

# ---- uploads


def test_too_large_upload_is_refused_before_it_is_read(client, web):
    head = {"Content-Type": "multipart/form-data; boundary=edge", "Content-Length": "10000000"}
    status, answer = client.request("POST", "/gradio_api/upload", None, head)
    assert status == 413 and b"0.5 MB" in answer

    def parts():  # no length is declared
        yield b'--edge\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        for _ in range(64):
            yield bytes(65536)

    headers = {"Content-Type": head["Content-Type"], "Transfer-Encoding": "chunked"}
    connection = http.client.HTTPConnection(client.address, timeout=30)
    connection.request("POST", "/gradio_api/upload", parts(), headers, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()
    sizes = [path.stat().st_size for path in web.folder.rglob("*") if path.is_file()]
    assert max(sizes) < 0.6e6


def test_server_full_of_uploads_takes_no_more(client, web):
    heap = web.folder / "heap"
    with open(heap, "wb") as file:
        file.truncate(51 * web.gate.max_bytes)
    try:
        assert client.upload(b"more")[0] == 507
    finally:
        heap.unlink()
    assert client.upload(b"more")[0] == 200


@pytest.mark.parametrize(
    "name",
    ["../../../escaped.png", "/tmp/escaped.png", "..\\..\\escaped.png", "..", "n" * 300 + ".png",
     "a\x00b.png", "%2e%2e%2fescaped.png", ".hidden", "con.png:stream"],
)  # fmt: skip
def test_names_cannot_leave_the_folder(client, web, name):
    status, answer = client.upload(b"content", name)
    if status == 200:
        assert web.folder in Path(answer[0]).resolve().parents
        assert Path(answer[0]).read_bytes() == b"content"
    for folder in (web.folder.parent, Path.cwd(), Path("/tmp")):
        assert not (folder / "escaped.png").exists()


# ---- what it does not give away

HIDDEN = [
    "/etc/passwd",
    str(ROOT / "README.md"),
    "README.md",
    "/proc/self/environ",
    str(ROOT / "setup.py"),
]


@pytest.mark.parametrize("path", [*HIDDEN, "../../../../../../etc/passwd", "~/.bashrc", "/", ""])
def test_files_of_the_machine_are_not_served(client, web, path):
    inside = f"{web.folder}/../../../../../../../../{path}"
    for route in ("/gradio_api/file=", "/gradio_api/file/", "/file=", "/file/", "/static/",
                  "/assets/", "/svelte/", "/gradio_api/proxy=", "/gradio_api/stream/"):  # fmt: skip
        for target in (path, path.replace("/", "%2F"), inside):
            status, answer = client.request("GET", route + target)
            assert status in (400, 403, 404), (route, target)
            assert len(answer) < 200


def test_links_out_of_the_folder_are_not_followed(client, web):
    link = web.folder / "link.png"
    link.symlink_to(ROOT / "README.md")
    try:
        assert client.request("GET", f"/gradio_api/file={link}")[0] == 403
    finally:
        link.unlink()


@pytest.mark.parametrize("path", [*HIDDEN, "http://127.0.0.1:9/a.png", "https://example.com/", 7])
def test_files_of_the_machine_are_no_input(client, path):
    for item in ({"path": path}, {"path": path, "meta": {"_type": "gradio.FileData"}, "url": path}):
        status, answer = client.join("drop.upload", [item])
        assert status == 400 and b"there is no such file" in answer


def test_path_of_the_image_is_not_the_client_s(client):
    client.example()
    message = client.event("budget.release", ["/etc/passwd", "tiny", 25, False, 50])
    assert "128 x 96" in message["output"]["data"][5]


@pytest.mark.parametrize(
    "path",
    ["proxy=http://127.0.0.1/", "file=http://127.0.0.1/", "info", "openapi.json", "runs", "app_id",
     "deep_link?session_hash=a", "queue/status", "custom_component/a/client/b/c", "vibe-code",
     "user", "token", "stream/a/b/c/playlist-file", "dev/reload", "../docs", "../monitoring",
     "../redoc", "../openapi.json", "../login"],
)  # fmt: skip
def test_pages_that_nobody_needs_are_not_there(client, path):
    for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
        route = "/" + path[3:] if path.startswith("../") else "/gradio_api/" + path
        assert client.request(method, route)[0] in (403, 404)


@pytest.mark.parametrize("path", ["run/predict", "api/refine", "call/refine", "call/v2/refine",
                                  "component_server", "process_recording", "vibe-edit",
                                  "run-history/connect"])  # fmt: skip
def test_nothing_runs_beside_the_queue(client, path):
    headers = {"Content-Type": "application/json"}
    body = json.dumps({"data": [], "fn_index": 0, "session_hash": client.session})
    assert client.request("POST", f"/gradio_api/{path}", body, headers)[0] == 404


def test_requests_that_are_no_uploads_are_small(client):
    status, answer = client.join("drop.upload", ["a" * 300_000])
    assert status == 413
    headers = {"Content-Type": "application/json"}
    for body in (b"{", b"[" * 200_000, b"\xff"):
        assert client.request("POST", "/gradio_api/queue/join", body, headers)[0] == 400


def test_other_sites_cannot_use_it(client):
    assert client.request("GET", "/", headers={"Host": "evil.example"})[0] == 400
    for origin in ("https://evil.example", "null", "http://[", "http://127.0.0.1.evil.example"):
        assert client.request("GET", "/config", headers={"Origin": origin})[0] == 403
    port = client.address.split(":")[1]
    for name in ("127.0.0.1", "localhost", "[::1]", "here"):  # the last as it was told to listen
        headers = {"Host": f"{name}:{port}", "Origin": f"http://{name}:{port}"}
        assert client.request("GET", "/config", headers=headers)[0] == 200


def test_page_names_no_other_place(client):
    connection = http.client.HTTPConnection(client.address, timeout=30)
    connection.request("GET", "/")
    answer = connection.getresponse()
    html = answer.read().decode()
    policy = answer.headers["content-security-policy"]
    connection.close()
    assert "default-src 'self'" in policy and "http" not in policy
    loaded = re.findall(r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=["']([^"']+)""", html)
    assert loaded and not [place for place in loaded if re.match(r"(https?:)?//", place)]
    style = client.request("GET", "/theme.css")[1].decode()
    assert not re.search(r"""@import|url\(["']?(https?:)?//""", style)
    assert client.config["analytics_enabled"] is False
