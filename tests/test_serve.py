"""The page of `fcn-jax serve`: what it shows, what it refuses, and what it never gives out."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from random_parameters import random_parameters

import fcn_jax
from fcn_jax.classes import table_from_names
from fcn_jax.inference import demo
from fcn_jax.models.fcn import FCN

NAMES = ("background", "<img src=x onerror=alert(1)>", "${1+1} {{value}}")
LIMITS = demo.Limits(megabytes=2, megapixels=1)
JOIN = "/gradio_api/queue/join"


@pytest.fixture(scope="module")
def model() -> FCN:
    return fcn_jax.create_model("fcn32s", num_classes=3, width=1 / 16, fc_width=8)


@pytest.fixture(scope="module")
def predictor(model) -> fcn_jax.Predictor:
    heads = {"label": table_from_names(list(NAMES))}
    return fcn_jax.Predictor(model, random_parameters(model, 0), heads=heads)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (97, 131, 3), np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def bomb(side: int = 30_000) -> bytes:
    """A PNG file of one colour, 3 MB or so that become gigabytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    packed, row = zlib.compressobj(9), bytes(1 + side)
    data = b"".join(packed.compress(row) for _ in range(side)) + packed.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


# ======================================================================== what is shown


def test_the_result_holds_the_mask_as_the_predictor_gives_it(predictor, photo):
    text = demo.result_of(predictor, photo, 'a"><b>.jpg')
    (mask,) = re.findall(r"download='(.*?)' href='data:image/png;base64,(.*?)'", text)
    assert mask[0] == "a&quot;&gt;&lt;b&gt;_mask.png"
    with Image.open(io.BytesIO(base64.b64decode(mask[1]))) as picture:
        assert picture.mode == "P"
        labels = np.asarray(picture)
    np.testing.assert_array_equal(labels, predictor(photo))
    shares = [float(share) for share in re.findall(r"</bdi> ([\d.]+)%", text)]
    counts = sorted(np.bincount(labels.ravel())[np.unique(labels)] / labels.size, reverse=True)
    np.testing.assert_allclose(shares, 100 * np.array(counts), atol=0.051)
    assert "<img src=x" not in text
    assert "<b>" not in text
    certain = predictor.probabilities(photo).max(axis=-1).mean()
    (told,) = re.findall(r"certain; mean ([\d.]+)%", text)
    assert float(told) == pytest.approx(100 * certain, abs=0.3)


def test_several_heads_have_a_section_each(photo):
    heads = {"sem": 3, "geo": 2}
    model = fcn_jax.create_model("fcn32s", num_classes=heads, width=1 / 16, fc_width=8)
    predictor = fcn_jax.Predictor(model, random_parameters(model, 0))
    text = demo.result_of(predictor, photo, "a.jpg")
    assert text.count("<section>") == 2
    assert re.findall(r"download='(.*?)'", text) == ["a_sem_mask.png", "a_geo_mask.png"]


def test_what_is_too_large_is_refused_by_its_header(tmp_path):
    file = tmp_path / "upload"
    file.write_bytes(bomb())
    begin = time.monotonic()
    with pytest.raises(ValueError, match=r"mine\.png: it is far too large; at most 1 megapixels"):
        demo.read_photograph(file, "mine.png", LIMITS)
    file.write_bytes(encoded(np.zeros((1001, 1000, 3), np.uint8)))
    with pytest.raises(ValueError, match="1000 x 1001 pixels are too large"):
        demo.read_photograph(file, "mine.png", LIMITS)
    assert time.monotonic() - begin < 5
    file.write_bytes(encoded(np.full((1000, 1000, 3), 7, np.uint8)))
    assert demo.read_photograph(file, "mine.png", LIMITS).shape == (1000, 1000, 3)


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff", b"II*\0", b"%!PS-Adobe-3.0 EPSF-3.0"])
def test_what_is_no_photograph_is_refused(tmp_path, content):
    file = tmp_path / "upload"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="mine: not a photograph"):
        demo.read_photograph(file, "mine", LIMITS)


@pytest.mark.parametrize("given", [{"num_classes": 5}, {"inputs": 4}])
def test_other_networks_are_refused(given):
    name = "fcn32s" if "inputs" in given else "classifier"
    model = fcn_jax.create_model(name, width=1 / 16, fc_width=8, **given)
    ways = fcn_jax.Preprocessing("rgb", (0.0,) * 4, (1.0,) * 4)
    inputs = {"inputs": fcn_jax.Inputs.of(ways)} if "inputs" in given else {}
    other = fcn_jax.Predictor(model, {}, **inputs)
    with (
        pytest.raises(
            ValueError, match=r"net reads image \(4 bands\); the page|net is a classifier; the"
        ),
        demo.served(other, "net", "127.0.0.1", None, LIMITS),
    ):
        pass


@pytest.mark.slow
def test_a_taken_port_is_told(server, predictor):
    with (
        pytest.raises(OSError, match=rf"port {server.port} of 127\.0\.0\.1 is taken"),
        demo.served(predictor, "net", "127.0.0.1", server.port, LIMITS),
    ):
        pass
    assert Path.cwd().is_dir()


# ======================================================================== what gets through


def through(tmp_path: Path, path: str, body: bytes = b"", **headers: str) -> int:
    """The status that `Guard` gives, 200 where it lets a request through unchanged."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if path == JOIN:
            assert (await receive())["body"] == body
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    with contextlib.chdir(tempfile.mkdtemp(dir=tmp_path)):
        guard = demo.Guard(app, LIMITS, demo.Uploads())
    headers = {"content-length": str(len(body)), **headers} if body or headers else {}
    scope = {
        "type": "http",
        "method": "POST" if body or headers else "GET",
        "path": path,
        "headers": [(key.encode(), value.encode()) for key, value in headers.items() if value],
    }
    asyncio.run(guard(scope, receive, send))
    return sent[0]["status"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 200),
        ("/assets/index-Ab_1.js", 200),
        ("/gradio_api/queue/data", 200),
        ("/gradio_api/file=/etc/passwd", 404),
        ("/gradio_api/file=uploads/x", 404),
        ("/gradio_api/file/etc/passwd", 404),
        ("/gradio_api/proxy=http://example.org", 404),
        ("/gradio_api/run/segment", 404),
        ("/config", 404),
        ("/assets/../../etc/passwd", 404),
        ("/static//etc/passwd", 404),
        ("/static/.hidden", 404),
        ("/\n", 404),
    ],
)
def test_only_what_the_page_needs_gets_through(tmp_path, path, status):
    assert through(tmp_path, path) == status


DIGEST = "0" * 64


@pytest.mark.parametrize(
    ("data", "status"),
    [
        ([{"path": f"uploads/{DIGEST}/a b.png"}], 200),
        ([{"path": "/etc/passwd"}], 403),
        ([{"path": f"uploads/{DIGEST}/../../config.json"}], 403),
        ([{"path": f"uploads/{DIGEST}/.."}], 403),
        ([{"path": "config.json"}], 403),
        ([{"a": [{"path": {"path": "/etc/passwd"}}]}], 403),
        ([{"path": None}], 403),
        (5, 400),
    ],
)
def test_requests_name_uploads_alone(tmp_path, data, status):
    body = json.dumps({"data": data} if isinstance(data, list) else data).encode()
    assert through(tmp_path, JOIN, body) == status


def test_requests_have_a_length_within_the_limits(tmp_path):
    assert through(tmp_path, "/gradio_api/upload", b"x" * (2 << 20)) == 200
    assert through(tmp_path, "/gradio_api/upload", b"x" * (2 << 20) + b"x" * 5000) == 413
    assert through(tmp_path, "/gradio_api/upload", b"x", **{"content-length": ""}) == 411
    assert through(tmp_path, JOIN, b" " * (1 << 17)) == 413
    assert through(tmp_path, JOIN, b"[" * 60_000) == 400


def test_uploads_go_when_nobody_waits_for_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    uploads = demo.Uploads()
    shown = uploads.folder / DIGEST
    shown.mkdir()
    uploads.waiting[DIGEST] = 2  # two visitors sent the same
    uploads.release(DIGEST)
    assert shown.exists()
    uploads.release(DIGEST)
    assert not shown.exists()
    (uploads.folder / "tmpabc").write_bytes(b"half of a photograph")
    uploads.remove_old()
    assert (uploads.folder / "tmpabc").exists()
    monkeypatch.setattr(demo.Uploads, "OLD", -1)
    uploads.remove_old()
    assert not any(uploads.folder.iterdir())


# ======================================================================== the command


class Server(NamedTuple):
    """A running `fcn-jax serve`."""

    port: int
    process: subprocess.Popen

    def request(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def upload(self, name: str, content: bytes) -> str:
        head = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        body = head.encode() + content + b"\r\n--b--\r\n"
        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        status, answer = self.request("POST", "/gradio_api/upload", body, **kind)
        assert status == 200
        (path,) = json.loads(answer)
        assert re.fullmatch(r"uploads/[0-9a-f]{64}/[^/]+", path)  # no folder of the server
        return path

    def segment(self, name: str, content: bytes, session: str) -> str:
        """The text that the page would show."""
        path = self.upload(name, content)
        sent = {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}
        body = json.dumps({"data": [sent], "fn_index": 0, "session_hash": session})
        status, _ = self.request("POST", JOIN, body, **{"Content-Type": "application/json"})
        assert status == 200
        _, events = self.request("GET", f"/gradio_api/queue/data?session_hash={session}")
        done = [
            json.loads(line[6:]) for line in events.decode().splitlines() if line[:5] == "data:"
        ]
        (output,) = [each["output"] for each in done if each["msg"] == "process_completed"]
        return output["data"][1]

    def memory(self, what: str) -> float:
        """MiB that the process holds (VmRSS), or has held at most (VmHWM)."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(rf"{what}:\s+(\d+)", text)[0]) / 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory, model) -> Iterator[Server]:
    """Started inside a run's folder."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("gradio is not installed: pip install -e '.[demo]'")
    folder = tmp_path_factory.mktemp("runs")
    fcn_jax.save_weights(folder / "net.npz", random_parameters(model, 0))
    (folder / "config.json").write_text('{"secret": 1}')
    (folder / "classes.txt").write_text("\n".join(NAMES))
    command = [sys.executable, "-m", "fcn_jax", "serve", "net.npz", "--classes=classes.txt"]
    command += ["--padding=same", "--max_megabytes=4", "--max_megapixels=1"]
    root = {"PYTHONPATH": str(Path(__file__).parents[1]), "FCN_JAX_PLAIN_OPS": "1"}
    temporary = tmp_path_factory.mktemp("temporary")
    environment = {**os.environ, **root, "TMPDIR": str(temporary)}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        told = process.stdout.readline() if process.stdout else ""
        (port,) = re.findall(r"http://127\.0\.0\.1:(\d+)/ shows net\.npz", told)
        yield Server(int(port), process)
        assert list(temporary.glob("fcn_jax_*/uploads/*/*")) == []  # what was sent is gone
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert list(temporary.glob("fcn_jax_*")) == []
    finally:
        process.kill()


@pytest.mark.slow
def test_no_file_of_the_server_is_given_out(server):
    for path in ("/gradio_api/file=/etc/passwd", "/gradio_api/file=config.json", "/config.json"):
        assert server.request("GET", path)[0] in (403, 404)
    for path in ("/gradio_api/file=..%2fconfig.json", "/assets/..%2f..%2f..%2f..%2fetc/passwd"):
        assert server.request("GET", path)[0] in (403, 404)
    named = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    body = json.dumps({"data": [named], "fn_index": 0, "session_hash": "s"})
    kind = {"Content-Type": "application/json"}
    assert server.request("POST", JOIN, body, **kind)[0] == 403
    for route in ("run/segment", "api/segment", "call/segment"):
        assert server.request("POST", f"/gradio_api/{route}", body, **kind)[0] == 404
    _, page = server.request("GET", "/")
    assert b"/tmp" not in page
    assert str(Path.home()).encode() not in page
    assert "a.png: not a photograph" in server.segment("a.png", b"x", "zeroth")
    listening = subprocess.run(["cat", "/proc/net/tcp"], capture_output=True, text=True).stdout
    assert re.findall(rf"(\w+):{server.port:04X} 00000000:0000 0A", listening) == ["0100007F"]


@pytest.mark.slow
def test_bombs_are_refused_in_the_page_and_a_second_visitor_is_served_meanwhile(server, photo):
    server.segment("first.png", encoded(photo), "first")
    before, results = server.memory("VmRSS"), []
    begin = threading.Thread(
        target=lambda: results.append(server.segment("big.png", bomb(), "second"))
    )
    begin.start()
    again = server.segment("mine.png", encoded(photo), "third")
    begin.join()
    assert "class='mask'" in again
    assert "big.png: it is far too large; at most 1 megapixels" in results[0]
    huge = b"x" * 1000  # its length is told before it comes
    length = {"Content-Length": str(500 << 20), "Content-Type": "multipart/form-data; boundary=b"}
    assert server.request("POST", "/gradio_api/upload", huge, **length)[0] == 413
    assert server.memory("VmHWM") - before < 100


@pytest.mark.slow
def test_the_page_in_a_browser(server, predictor, photo, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("Chromium is not installed")
    (tmp_path / "my photo.png").write_bytes(encoded(photo))
    (tmp_path / "bomb.png").write_bytes(bomb())
    (tmp_path / "heavy.jpg").write_bytes(b"x" * (5 << 20))
    problems, fetched = [], []
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("console", lambda told: problems.append(told.text) if told.type == "error" else 0)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.on("request", lambda request: fetched.append(request.url))
        page.goto(f"http://127.0.0.1:{server.port}/")
        drop = page.locator("input[type=file]")
        drop.wait_for(state="attached", timeout=60_000)
        drop.set_input_files(tmp_path / "my photo.png")
        page.wait_for_selector("img.overlay", timeout=60_000)
        assert page.locator("img.overlay").evaluate("i => [i.naturalWidth, i.naturalHeight]") == [
            *(131, 97)
        ]
        assert page.locator("img.confidence").evaluate("image => image.naturalWidth") == 131
        labels = predictor(photo)
        present = [NAMES[i] for i in np.argsort(-np.bincount(labels.ravel(), minlength=3))]
        assert page.locator(".legend bdi").all_text_contents() == [
            name for name in present if NAMES.index(name) in labels
        ]
        with page.expect_download() as download:
            page.click("a.mask")
        assert download.value.suggested_filename == "my photo_mask.png"
        with Image.open(download.value.path()) as mask:
            np.testing.assert_array_equal(np.asarray(mask), labels)
        drop.set_input_files(tmp_path / "bomb.png")
        page.wait_for_selector("[role=alert]:has-text('bomb.png: it is far too large')")
        page.reload()
        drop.wait_for(state="attached")
        drop.set_input_files(tmp_path / "heavy.jpg")
        page.wait_for_selector("text=exceed the maximum allowed size")
        browser.close()
    assert problems == []
    assert [
        url for url in fetched if "127.0.0.1" not in url and url[:5] not in ("data:", "blob:")
    ] == []
