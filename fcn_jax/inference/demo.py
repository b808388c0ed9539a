"""A page in the browser: drop a photograph, see what the network makes of it. `fcn-jax serve`.

Gradio draws the page and takes the photographs in; results travel as text of the page, so that the
server gives out no files. `Guard` stands before it: it lets through what the page needs and nothing
else, and bounds what comes in.
"""

from __future__ import annotations

import base64
import collections
import contextlib
import html
import importlib
import io
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fcn_jax import drawing
from fcn_jax.classes import ClassTable
from fcn_jax.data.images import read_image
from fcn_jax.inference.pipeline import predict_batch
from fcn_jax.inference.predictor import Predictor

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MOST_SHOWN = 1600  # pixels a side; the mask has all of them
UPLOADS = "uploads"


class Limits(NamedTuple):
    """What a visitor may send."""

    megabytes: float = 20.0
    megapixels: float = 16.0


# ======================================================================== from a file to HTML


def read_photograph(file: Path, name: str, limits: Limits) -> UInt8[np.ndarray, "h w 3"]:
    """Reads an image that may be anything; nothing is decoded before its size is known.

    Raises:
        ValueError: If it is no photograph, or one of too many pixels.
    """
    try:
        with Image.open(file, formats=FORMATS) as header:
            width, height = header.size
    except Image.DecompressionBombError:
        width = height = 0
    except Exception as error:  # Pillow raises many types for broken files
        known = ", ".join(FORMATS)
        raise ValueError(f"{name}: not a photograph that can be read ({known})") from error
    if not 0 < width * height <= limits.megapixels * 1e6:
        size = f"{width} x {height} pixels are" if width else "it is far"
        raise ValueError(f"{name}: {size} too large; at most {limits.megapixels:g} megapixels")
    return read_image(file.read_bytes(), name)


def result_of(predictor: Predictor, photo: UInt8[np.ndarray, "h w 3"], name: str) -> str:
    """What the network makes of a photograph, as HTML that needs no other file."""
    kinds = ("labels", "confidence")
    places = tuple((f"{kind}/{head}", head, kind) for head in predictor.heads for kind in kinds)

    parts = predictor.parts(None, predictor.opened({"image": photo}))
    batches = predictor.each_batch(parts, predictor.starting(predict_batch, places=places))
    (image,) = predictor.put_together(batches)
    sections = []
    for head, table in predictor.heads.items():
        assert isinstance(table, ClassTable)
        labels, confidence = (image.result[f"{kind}/{head}"] for kind in kinds)
        bright = drawing.bright(table)
        clear = [i for i, each in enumerate(table.names) if each.casefold() == "background"]
        counts = np.bincount(labels.ravel(), minlength=256)
        present = [label for label in np.argsort(-counts) if counts[label]]
        entries = "".join(
            f"<li><span style='background:rgb{tuple(map(int, bright.palette[label]))}'></span>"
            f"<bdi>{html.escape(table.names[label])}</bdi> {counts[label] / labels.size:.1%}</li>"
            for label in present
        )
        mask = _data_url(drawing.palette_image(labels, table), "PNG")
        of_head = f"_{head}" if len(predictor.heads) > 1 else ""
        saved = html.escape(f"{Path(name).stem}{of_head}_mask.png", quote=True)
        overlay = Image.fromarray(drawing.overlay(photo, labels, bright, clear=clear))
        sections.append(
            f"<section>{f'<h3>{html.escape(head)}</h3>' if of_head else ''}"
            f"<figure><img class='overlay' alt='overlay' src='{_data_url(overlay, 'JPEG')}'>"
            f"<figcaption>{html.escape(name)}, {photo.shape[1]} x {photo.shape[0]}</figcaption>"
            f"</figure><ul class='legend'>{entries}</ul>"
            f"<figure><img class='confidence' alt='confidence' "
            f"src='{_data_url(Image.fromarray(confidence), 'JPEG')}'>"
            f"<figcaption>confidence: white is certain; mean {confidence.mean() / 255:.1%}"
            f"</figcaption></figure><p><a class='mask' download='{saved}' href='{mask}'>"
            "Download the mask</a>: the number of each pixel's class, as PNG</p></section>"
        )
    return "".join(sections)


def _data_url(picture: Image.Image, kind: str) -> str:
    """A picture as text; only a PNG keeps its size."""
    if kind == "JPEG":
        picture.thumbnail((MOST_SHOWN, MOST_SHOWN))
    file = io.BytesIO()
    picture.save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


STYLE = """
section { display: grid; gap: 1rem; } figure { margin: 0; }
section img { max-width: 100%; height: auto; border-radius: 4px; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; list-style: none; padding: 0; }
.legend span { display: inline-block; width: 1em; height: 1em; margin-right: .4em;
    border: 1px solid #888; vertical-align: -.1em; }
"""

# ======================================================================== the server


class Guard:
    """ASGI middleware: what the page needs gets through, nothing else, and nothing large."""

    PAGES = re.compile(
        r"/|/theme\.css|/favicon\.ico|/manifest\.json|/(assets|static|svelte)(/(?!\.)[\w.@-]+)+"
        r"|/gradio_api/(upload|upload_progress|queue/join|queue/data|startup-events"
        r"|heartbeat/\w+)"
    )
    UPLOADED = re.compile(rf"{UPLOADS}/([0-9a-f]{{64}})/(?!\.)[^/\\]+")
    MOST_TEXT = 1 << 16  # bytes of a request that is no photograph

    def __init__(self, app: Any, limits: Limits, uploads: Uploads) -> None:
        self.app, self.limits, self.uploads = app, limits, uploads

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        status, path = 0, scope.get("path")
        if scope["type"] == "http":
            status = self.refusal(scope, path)
            if not status and path == "/gradio_api/upload":
                self.uploads.remove_old()
            if not status and path == "/gradio_api/queue/join":
                body, more = b"", True
                while more:
                    message = await receive()
                    body, more = body + message.get("body", b""), message.get("more_body", False)
                status = self.note(body)
                receive = _replayed(body, receive)
        if status:
            headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": str(status).encode()})
        else:
            await self.app(scope, receive, send)

    def refusal(self, scope: Any, path: str) -> int:
        """The status of a request that is refused for its path or length, else 0."""
        if not self.PAGES.fullmatch(path):
            return 404
        if scope["method"] in ("GET", "HEAD"):
            return 0
        length = dict(scope["headers"]).get(b"content-length", b"")
        if not length.isdigit():
            return 411
        most = self.MOST_TEXT
        if path == "/gradio_api/upload":
            most = int(self.limits.megabytes * 2**20) + 4096
        return 413 if int(length) > most else 0

    def note(self, body: bytes) -> int:
        """Notes what is to be shown; the status of a request for a file of the server, else 0."""
        try:
            files = [self.UPLOADED.fullmatch(str(each)) for each in paths_in(json.loads(body))]
        except (ValueError, TypeError, RecursionError):
            return 400
        if not all(files):
            return 403
        self.uploads.waiting.update(file[1] for file in files if file)
        return 0


def _replayed(body: bytes, receive: Any) -> Any:
    """A channel on which a body that was read comes again, and then what follows."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Any:
        return messages.pop() if messages else await receive()

    return again


class Uploads:
    """The files that visitors sent, in folders that are called by their digests.

    Two visitors may have sent the same: it is removed when all have seen the result, and in any
    case after ten minutes.
    """

    OLD = 600.0  # seconds

    def __init__(self) -> None:
        self.folder = Path(UPLOADS).absolute()
        self.folder.mkdir()
        self.waiting: collections.Counter[str] = collections.Counter()

    def release(self, digest: str) -> None:
        """Removes a file for which nobody waits any more."""
        self.waiting[digest] -= 1
        if self.waiting[digest] <= 0:
            del self.waiting[digest]
            shutil.rmtree(self.folder / digest, ignore_errors=True)

    def remove_old(self) -> None:
        """Removes what was sent and never shown, also in part."""
        for each in self.folder.iterdir():
            with contextlib.suppress(OSError):
                if time.time() - each.stat().st_mtime > self.OLD:
                    self.waiting.pop(each.name, None)
                    shutil.rmtree(each) if each.is_dir() else each.unlink()


def paths_in(value: Any) -> Iterator[Any]:
    """What a request calls the path of a file, wherever it stands."""
    if isinstance(value, dict):
        yield from (each for key, each in value.items() if key == "path")
    for each in value.values() if isinstance(value, dict) else value:
        if isinstance(each, dict | list):
            yield from paths_in(each)


@contextlib.contextmanager
def served(
    predictor: Predictor, title: str, host: str, port: int | None, limits: Limits
) -> Iterator[str]:
    """Serves the page; gives its address, and removes all that visitors sent at the end.

    The process works in a folder of its own meanwhile, so that gradio speaks of files by names
    that tell nothing of the server.

    Raises:
        ValueError: If gradio is missing, or the network does not read photographs alone or gives
            no label maps.
        OSError: If the port is taken; None takes the first from 7860 on that is not.
    """
    if predictor.classifies or not all(isinstance(t, ClassTable) for t in predictor.heads.values()):
        raise ValueError(f"{title} is a classifier; the page shows label maps")
    ways = {name: way.channels for _, parts in predictor.inputs.entries for name, way in parts}
    if ways != {"image": 3}:
        reads = ", ".join(f"{name} ({bands} bands)" for name, bands in ways.items())
        raise ValueError(f"{title} reads {reads}; the page takes photographs")
    os.environ.update(GRADIO_TEMP_DIR=UPLOADS, GRADIO_ANALYTICS_ENABLED="False")
    try:  # an extra, which type checkers need not know
        gradio: Any = importlib.import_module("gradio")
        middleware: Any = importlib.import_module("starlette.middleware").Middleware
    except ImportError:
        raise ValueError("the page needs gradio: pip install 'fcn-jax[demo]'") from None

    def segment(upload: Any) -> tuple[None, str]:
        file = Path(upload.path)
        name = upload.orig_name or file.name
        try:
            return None, result_of(predictor, read_photograph(file, name, limits), name)
        except (ValueError, OSError, MemoryError, jax.errors.JaxRuntimeError) as error:
            reason = str(error)
            if isinstance(error, FileNotFoundError):
                reason = f"{name} is no longer here; drop it again"
            elif not isinstance(error, ValueError):
                reason = f"{name}: the server has too little memory for it now"
            return None, f"<p role='alert'>{html.escape(reason)}</p>"
        finally:
            uploads.release(file.parent.name)
            uploads.remove_old()

    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="fcn_jax_") as folder:
        os.chdir(folder)
        try:
            uploads = Uploads()
            with gradio.Blocks(title=title, delete_cache=(60, int(Uploads.OLD))) as page:
                gradio.HTML(f"<h1>{html.escape(title)}</h1>")
                most = f"at most {limits.megabytes:g} MB and {limits.megapixels:g} megapixels"
                sent = gradio.File(label=f"A photograph, {most}", file_types=["image"])
                # The upload as it is; gradio would leave an empty copy of each.
                sent.preprocess = lambda upload: upload
                shown = gradio.HTML()
                sent.upload(segment, sent, [sent, shown], api_visibility="private")
            page.queue(max_size=32, default_concurrency_limit=2)
            try:
                _, address, _ = page.launch(
                    server_name=host,
                    server_port=port,
                    max_file_size=int(limits.megabytes * 2**20),
                    app_kwargs={"middleware": [middleware(Guard, limits=limits, uploads=uploads)]},
                    # The reader's own fonts: gradio's would be fetched.
                    theme=gradio.themes.Default(font=["system-ui"], font_mono=["monospace"]),
                    css=STYLE,
                    footer_links=[],
                    prevent_thread_lock=True,
                    quiet=True,
                    share=False,  # the environment may say otherwise of these
                    ssr_mode=False,
                    mcp_server=False,
                    run_history=False,
                )
            except OSError:  # gradio's line speaks of its own settings
                taken = f"port {port} of {host} is taken" if port else f"{host} has no free port"
                raise OSError(f"{taken}, or it is no address of this machine") from None
            try:
                yield address
            finally:
                page.close(verbose=False)
        finally:
            os.chdir(before)
