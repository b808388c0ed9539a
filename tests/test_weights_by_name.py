"""Published weights by name: fetched from a local server, whole, cut, wrong, refused, at once."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import state_dicts
from random_parameters import random_parameters
from safetensors.numpy import save as as_safetensors

import fcn_jax
from fcn_jax import cli, data, weights
from fcn_jax.models.backbones import BACKBONES
from fcn_jax.models.decoders import DECODERS
from fcn_jax.models.inputs import CAFFE, Inputs
from fcn_jax.training import init
from fcn_jax.training.run import train
from fcn_jax.weights import fetching, published

NAME = "caffe:fcn16s-heavy-pascal"  # of which no hash is published


class Server(http.server.ThreadingHTTPServer):
    """Answers each path as `answers` says: a function of the request, or content."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict = {}
        self.asked: list[str] = []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        answer = self.server.answers[self.path]
        if callable(answer):
            answer(self)
        else:
            self.give(answer)

    def give(self, content: bytes, length: int | None = -1, status: int = 200) -> None:
        """Sends content, with a length that may be another one, or None."""
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(len(content) if length < 0 else length))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(content)

    def log_message(self, *_) -> None: ...


@pytest.fixture
def server():
    with Server() as running:
        yield running
        running.shutdown()


def content_of(size: int = 20_000) -> bytes:
    """A weight file of random values."""
    values = np.random.default_rng(0).standard_normal((3, 3, 3, size // 108), np.float32)
    return as_safetensors({"conv1/kernel": values})


def use(monkeypatch, server: Server, content: bytes, known: str = "", name: str = NAME):
    """Makes a row lie on the server."""
    row = published.PUBLISHED[name]._replace(url=f"{server.url}/file", hash=known)
    monkeypatch.setitem(published.PUBLISHED, name, row)
    server.answers.setdefault("/file", content)
    return row


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FCN_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # before it tries again
    return tmp_path / "cache" / "weights" / "caffe"


def files_in(folder) -> set[str]:
    return set(os.listdir(folder)) if folder.exists() else set()


# ======================================================================== the table


@pytest.mark.parametrize("name", published.PUBLISHED)
def test_every_row_is_whole(name):
    row = published.PUBLISHED[name]
    assert row.name == name
    assert row.backbone in BACKBONES
    assert row.network in ("", "classifier", *DECODERS)
    assert row.pixels in published.PIXELS
    assert row.licence.startswith("unverified")
    assert row.url.startswith(("https://", "http://www.robots.ox.ac.uk", "http://dl.caffe."))
    assert 40 < row.megabytes < 1200
    lengths = {"sha256": (8, 64), "sha1": (40,), "md5": (32,)}
    algorithm, _, digest = row.hash.partition(":")
    assert not row.hash or (len(digest) in lengths[algorithm] and re.fullmatch("[0-9a-f]+", digest))
    if row.url.startswith("http:") and not row.hash:
        assert name.startswith("caffe:")


def test_files_do_not_share_a_place():
    places = {fetching.cached_path(row) for row in published.PUBLISHED.values()}
    assert len(places) == len(published.PUBLISHED)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("torchvision:vgg17", "torchvision:vgg1"),
        ("caffe:fcn8s", "caffe:fcn8s-"),
        ("keras:resnet50", "keras:vgg16"),
    ],
)
def test_a_name_that_is_not_there(name, near):
    for load in (weights.load, fcn_jax.load):
        with pytest.raises(
            ValueError, match=rf"no published weights {name}; did you mean .*{near}"
        ):
            load(name)


def test_a_missing_file_hints_at_names(tmp_path):
    for load in (weights.load, fcn_jax.load):
        with pytest.raises(FileNotFoundError, match="fcn-jax weights"):
            load(tmp_path / "vgg16.npz")


def test_the_command_lists_all(capsys, cache):
    row = published.PUBLISHED[NAME]
    fetching.cached_path(row).parent.mkdir(parents=True)
    fetching.cached_path(row).write_bytes(b"")
    assert cli.main(["weights"]) == 0
    out = capsys.readouterr().out
    for name, row in published.PUBLISHED.items():
        (line,) = re.findall(rf"^{re.escape(name)} .*$", out, re.MULTILINE)
        assert row.licence in line
        assert ("  yes  " in line) == (name == NAME)
    assert str(cache.parent) in out


def test_the_command_fetches(monkeypatch, server, cache, capsys):
    content = content_of()
    row = use(monkeypatch, server, content)
    assert cli.main(["weights", NAME]) == 0
    assert capsys.readouterr().out == f"{cache / row.file}\n"
    (cache / row.file).unlink()
    server.answers["/file"] = lambda handler: handler.give(b"", status=404)
    assert cli.main(["weights", NAME]) == 2
    assert cli.main(["weights", "caffe:no"]) == 2
    last = capsys.readouterr().err.splitlines()[-2:]
    assert last[0].startswith(f"fcn-jax weights: {NAME} cannot be fetched: the server answers 404")
    assert last[1].startswith("fcn-jax weights: there are no published weights caffe:no")


# ======================================================================== fetching


@pytest.mark.parametrize("known", [True, False])
def test_whole(monkeypatch, server, cache, capsys, known):
    content = content_of()
    row = use(monkeypatch, server, content, sha256(content) if known else "")
    loaded = weights.load(NAME)
    assert set(loaded) == {"conv1/kernel"}
    assert (loaded.kind, loaded.inputs) == (NAME, Inputs.of(CAFFE))
    told = capsys.readouterr().err
    assert row.licence in told
    assert (sha256(content) in told) == (not known)
    assert files_in(cache) == {row.file, *([] if known else [f"{row.file}.sha256"])}
    assert (cache / row.file).read_bytes() == content

    weights.load(NAME)
    assert server.asked == ["/file"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("digits", [8, 64])
@pytest.mark.parametrize("algorithm", ["sha256", "sha1", "md5"])
def test_every_hash_is_checked(monkeypatch, server, cache, algorithm, digits):
    content = content_of()
    digest = hashlib.new(algorithm, content).hexdigest()[:digits]
    use(monkeypatch, server, content, f"{algorithm}:{digest}")
    weights.load(NAME)

    wrong = ("0" if digest[0] != "0" else "1") + digest[1:]
    row = use(monkeypatch, server, content, f"{algorithm}:{wrong}")
    with pytest.raises(ValueError, match=f"gave a file of another hash than {algorithm}:{wrong}"):
        weights.load(NAME)
    # What was there was not that file, and has not been replaced by another that is not.
    assert files_in(cache) == {row.file}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("length", [True, False])
def test_cut_with_status_200(monkeypatch, server, cache, length, known):
    """The connection ends early, with a length or without; the next call fetches anew."""
    content = content_of(1_000_000)
    row = use(monkeypatch, server, content, sha256(content) if known else "")
    server.answers["/file"] = lambda handler: handler.give(
        content[:600_000], len(content) if length else None
    )
    error = OSError if length else ValueError
    with pytest.raises(error) as caught:
        weights.load(NAME)
    message = str(caught.value)
    assert "\n" not in message
    assert row.url in message
    assert str(cache / row.file) in message
    assert files_in(cache) == set()

    server.answers["/file"] = content
    assert weights.load(NAME)["conv1/kernel"].nbytes > 900_000


def test_a_connection_that_breaks_is_tried_again(monkeypatch, server, capsys):
    content = content_of()
    use(monkeypatch, server, content, sha256(content))

    def break_twice(handler) -> None:
        handler.give(content[:100] if len(server.asked) < 3 else content, len(content))

    server.answers["/file"] = break_twice
    weights.load(NAME)
    assert capsys.readouterr().err.count("trying again") == 2


@pytest.mark.parametrize(
    ("status", "tries", "reason"),
    [(404, 1, "answers 404"), (403, 1, "answers 403"), (503, 3, "answers 503")],
)
def test_refused(monkeypatch, server, cache, status, tries, reason):
    row = use(monkeypatch, server, b"")
    server.answers["/file"] = lambda handler: handler.give(b"no", status=status)
    with pytest.raises(OSError, match=reason) as caught:
        weights.load(NAME)
    assert len(server.asked) == tries
    for part in (row.url, "no hash is published", str(cache / row.file)):
        assert part in str(caught.value)
    assert files_in(cache) == set()


def test_no_server(monkeypatch, server, cache):
    """One line with the URL, the hash and the path; a file that is put there by hand is found."""
    content = content_of()
    row = use(monkeypatch, server, content, sha256(content))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        row = row._replace(url=f"http://127.0.0.1:{unused.getsockname()[1]}/file")
    monkeypatch.setitem(published.PUBLISHED, NAME, row)
    with pytest.raises(OSError, match="no connection") as caught:
        weights.load(NAME)
    (place,) = re.findall(r"as (\S+)$", str(caught.value))
    assert row.url in str(caught.value)
    assert row.hash in str(caught.value)
    fetching.Path(place).write_bytes(content)
    assert set(weights.load(NAME)) == {"conv1/kernel"}


def test_a_web_page_instead(monkeypatch, server, cache):
    page = b"<html>quota exceeded</html>"
    use(monkeypatch, server, page, sha256(content_of()))
    with pytest.raises(ValueError, match="gave a web page of another hash"):
        weights.load(NAME)
    use(monkeypatch, server, page, "")
    with pytest.raises(ValueError, match=r"is a web page.*thrown away"):
        weights.load(NAME)
    assert files_in(cache) == set()


def test_a_redirect(monkeypatch, server):
    content = content_of()
    use(monkeypatch, server, content, sha256(content))

    def elsewhere(handler) -> None:
        handler.send_response(302)
        handler.send_header("Location", f"{server.url}/elsewhere")
        handler.end_headers()

    server.answers |= {"/file": elsewhere, "/elsewhere": content}
    weights.load(NAME)
    assert server.asked == ["/file", "/elsewhere"]


def test_a_server_that_stops(monkeypatch, server, cache):
    use(monkeypatch, server, b"")
    monkeypatch.setattr(fetching, "TIMEOUT", 0.2)
    done = threading.Event()
    server.answers["/file"] = lambda handler: (handler.give(b"begin", 1000), done.wait(10))
    with pytest.raises(OSError, match=r"no answer for 0\.2 seconds"):
        weights.load(NAME)
    done.set()
    assert files_in(cache) == set()


def test_a_proxy_is_used(monkeypatch, server):
    content = content_of()
    row = use(monkeypatch, server, content, sha256(content))
    monkeypatch.setitem(published.PUBLISHED, NAME, row._replace(url="http://weights.invalid/a"))
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    server.answers["http://weights.invalid/a"] = content
    weights.load(NAME)
    assert server.asked == ["http://weights.invalid/a"]


# ======================================================================== the cache


def test_a_damaged_file_is_fetched_anew(monkeypatch, server, cache, capsys):
    content = content_of()
    for known in (sha256(content), ""):
        row = use(monkeypatch, server, content, known)
        weights.load(NAME)
        (cache / row.file).write_bytes(content[:-4] + b"\0\0\0\1")
        weights.load(NAME)
        assert (cache / row.file).read_bytes() == content
        assert "fetched anew" in capsys.readouterr().err


def test_another_file_than_the_first_one_is_refused(monkeypatch, server, cache):
    """Where no hash is published; until the person says that it is right."""
    row = use(monkeypatch, server, content_of())
    weights.load(NAME)
    (cache / row.file).unlink()
    server.answers["/file"] = other = content_of(40_000)
    with pytest.raises(ValueError, match=r"which was the first one's; remove (\S+\.sha256)"):
        weights.load(NAME)
    (cache / f"{row.file}.sha256").unlink()
    weights.load(NAME)
    assert (cache / row.file).read_bytes() == other


def test_a_file_put_there_by_hand(monkeypatch, server, cache):
    """Without a published hash it is never thrown away; if it can be read, its hash is kept."""
    row = use(monkeypatch, server, content_of())
    cache.mkdir(parents=True)
    (cache / row.file).write_bytes(b"not a weight file")
    with pytest.raises(ValueError, match="is no weight file"):
        weights.load(NAME)
    assert files_in(cache) == {row.file}
    (cache / row.file).write_bytes(content_of())
    weights.load(NAME)
    assert (cache / f"{row.file}.sha256").read_text().split() == [
        sha256(content_of()).removeprefix("sha256:"),
        row.file,
    ]
    assert server.asked == []


@contextlib.contextmanager
def not_writable(folder):
    """A folder that this process may read and not write to, even if it is root's."""
    modes = {path: path.stat().st_mode for path in (folder, *folder.rglob("*"))}
    for path, mode in modes.items():
        path.chmod(mode & 0o555 | 0o444)
    root = os.geteuid() == 0
    if root:
        for path in folder.parents:
            if not path.stat().st_mode & 1:
                path.chmod(path.stat().st_mode | 0o111)
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for path, mode in modes.items():
            path.chmod(mode)


@pytest.mark.parametrize("remembered", [True, False])
@pytest.mark.parametrize("known", [True, False])
def test_a_cache_that_cannot_be_written_to(monkeypatch, server, cache, known, remembered):
    content = content_of()
    row = use(monkeypatch, server, content, sha256(content) if known else "")
    weights.load(NAME)
    if not remembered:
        (cache / f"{row.file}.sha256").unlink(missing_ok=True)
    server.shutdown()
    before = files_in(cache)
    with not_writable(cache):
        assert set(weights.load(NAME)) == {"conv1/kernel"}
    assert files_in(cache) == before

    (cache / row.file).unlink()
    with (
        not_writable(cache),
        pytest.raises(OSError, match=rf"{cache} cannot be written to .*FCN_JAX_CACHE"),
    ):
        weights.load(NAME)
    assert server.asked == ["/file"]


CHILD = """
import sys
from fcn_jax import weights
from fcn_jax.weights import published
name, url, known = sys.argv[1:]
row = published.PUBLISHED[name]
published.PUBLISHED[name] = row._replace(url=url, hash=known)
print(len(weights.load(name)), flush=True)
"""


def test_two_at_once_of_which_one_is_killed(server, cache):
    """The other two end with the right file, do not wait for the dead one, and leave nothing."""
    content = content_of(2_000_000)
    killed = threading.Event()

    def answer(handler) -> None:  # the first one never gets the second half
        first = len(server.asked) == 1
        handler.give(content[:1_000_000] if first else content, len(content))
        killed.wait(60) if first else None

    server.answers["/file"] = answer
    command = [sys.executable, "-c", CHILD, NAME, f"{server.url}/file", sha256(content)]

    def start() -> subprocess.Popen:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    one, two = start(), None
    wait_for(lambda: server.asked)
    two = start()
    assert "waiting for another process" in two.stderr.readline()
    assert all(name.startswith(".") for name in files_in(cache))
    one.send_signal(signal.SIGKILL)
    one.communicate()
    three = start()
    for process in (two, three):
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "1\n"), err
    killed.set()
    row = published.PUBLISHED[NAME]
    assert files_in(cache) == {row.file}
    assert (cache / row.file).read_bytes() == content
    assert len(server.asked) == 2  # by the first and by one of the others


def wait_for(done) -> None:
    for _ in range(600):
        if done():
            return
        threading.Event().wait(0.1)
    raise AssertionError("it did not happen")


def test_where_there_are_no_locks(monkeypatch, server, cache):
    content = content_of()
    row = use(monkeypatch, server, content, sha256(content))
    import fcntl

    def no_locks(*_) -> None:
        raise OSError(fetching.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    weights.load(NAME)
    assert files_in(cache) == {row.file}


def test_the_cache_of_the_platform(monkeypatch):
    import platformdirs

    monkeypatch.delenv("FCN_JAX_CACHE")
    assert fetching.cache_folder() == platformdirs.user_cache_path("fcn_jax") / "weights"


# ======================================================================== what a name brings along


def put(cache, name: str, params) -> None:
    """Puts weights into the cache by hand, under a name of which no hash is published."""
    row = published.PUBLISHED[name]
    place = fetching.cached_path(row)
    place.parent.mkdir(parents=True, exist_ok=True)
    weights.save(place.with_suffix(".npz"), params)
    place.with_suffix(".npz").rename(place)


@pytest.mark.parametrize(
    ("name", "decoder", "classes", "reads"),
    [
        ("caffe:fcn8s-atonce-pascal", "fcn8s_atonce", 21, "image"),
        ("caffe:nyud-fcn32s-hha-heavy", "fcn32s", 40, "hha"),
        ("caffe:nyud-fcn32s-color-heavy", "fcn32s", 40, "image"),
    ],
)
def test_a_published_network_is_loaded_as_what_it_is(cache, name, decoder, classes, reads):
    small = {"num_classes": classes, "width": 1 / 64, "fc_width": 3, "padding": "reference"}
    model = fcn_jax.create_model(decoder, **small)
    put(cache, name, random_parameters(model, 0))
    predictor = fcn_jax.load(name)
    assert (predictor.model.decoder, predictor.model.backbone) == (model.decoder, model.backbone)
    assert predictor.inputs.modalities == (reads,)
    nyud = data.DATASETS["nyudv2"].preprocessing
    expected = nyud[reads] if classes == 40 else CAFFE
    assert predictor.inputs.preprocessing(reads) == expected


def test_caffes_pixels_under_torchvisions_names(monkeypatch, server):
    """Which the file alone does not tell."""
    content = as_safetensors(state_dicts.vgg("vgg16"))
    use(monkeypatch, server, content, sha256(content), "pytorch-fcn:vgg16")
    assert weights.load("pytorch-fcn:vgg16").inputs == Inputs.of(CAFFE)


@pytest.mark.parametrize("name", ["keras:vgg16-notop", "caffe:alexnet"])
def test_start_weights_do_not_predict(name, cache):
    with pytest.raises(ValueError, match=f"can only be trained from: --config.init={name}"):
        fcn_jax.load(name)
    assert not cache.parent.exists()


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("torchvision:vgg13", {}, r"is of config\.backbone = 'vgg13', not 'vgg16'"),
        ("torchvision:vgg16", {"width": 0.5}, r"has the full width, not config\.width = 0\.5"),
        ("torchvision:vgg61", {}, "did you mean .*torchvision:vgg16"),
        ("image=keras:vgg19", {}, r"is of config\.backbone = 'vgg19'"),
    ],
)
def test_training_refuses_what_does_not_fit_before_it_is_fetched(
    tmp_path, cache, name, fields, message
):
    config = fcn_jax.config.default_config()
    config.update(init=name, steps=(1,), data_dir=str(tmp_path / "data"), **fields)
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path / "run")
    assert not cache.parent.exists()
    assert not (tmp_path / "data").exists()


def test_a_data_set_that_is_not_there_is_told_before_a_fetch(tmp_path, cache):
    config = fcn_jax.config.default_config()
    config.update(init="torchvision:vgg16", steps=(1,), dataset="camvid")
    config.update(data_dir=str(tmp_path / "data"), manual_dir=str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="none"):
        train(config, tmp_path / "run")
    assert not cache.parent.exists()


def test_random_layers_are_not_frozen(tmp_path):
    config = fcn_jax.config.default_config()
    config.update(freeze=("conv1_*",), steps=(1,), data_dir=str(tmp_path / "data"))
    config.dataset_options.update({"train": 2, "val": 1, "size": 48})
    with pytest.raises(ValueError, match=r"freeze = \('conv1_\*',\): conv1_1 would stay random"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_random_weights_on_a_small_set_are_warned_of():
    expect = init.expect_of_random_weights
    text = expect("folder", 40, "vgg16")
    assert "40 training images" in text
    assert "config.init='torchvision:vgg16'" in text
    assert "config.init" not in expect("folder", 40, "own.py:net")
    assert expect("folder", 40, "own.py:net") != ""
    assert expect("folder", 5000, "vgg16") == expect("shapes", 40, "vgg16") == ""
