"""The Hugging Face Hub: a run is pushed to a local server that speaks as it does, and read back."""

from __future__ import annotations

import base64
import http.server
import json
import re
import sys
import threading
import time

import numpy as np
import optax
import pytest
from random_parameters import random_parameters

import fcn_jax
from fcn_jax import checkpoints, cli, runs, weights
from fcn_jax import config as configs
from fcn_jax.classes import table_from_names
from fcn_jax.models.inputs import Inputs, Preprocessing
from fcn_jax.training.step import init_state
from fcn_jax.weights import hub

huggingface_hub = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAMES = ("sky | <b>", "tree")


class Hub(http.server.ThreadingHTTPServer):
    """Keeps the files of repositories by ``OWNER/REPO/FILE``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.created: list[dict] = []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        resolve = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.path)
        if resolve is None:
            asked = re.match(r"/api/models/([^/]+/[^/]+)", self.path)
            if asked is None:  # who one is, for instance
                self.answer({})
                return
            repo = asked[1]
            names = [f.removeprefix(f"{repo}/") for f in self.server.files if f.startswith(repo)]
            if "/tree/" in self.path:
                kinds = {"type": "file", "oid": COMMIT, "size": 1}
                self.answer([{**kinds, "path": name} for name in names] or None)
            else:
                self.answer({"id": repo, "sha": COMMIT, "siblings": []} if names else None)
            return
        content = self.server.files.get(f"{resolve[1]}/{resolve[2]}")
        if content is None:
            there = any(name.startswith(f"{resolve[1]}/") for name in self.server.files)
            self.answer(None, code="EntryNotFound" if there else "RepoNotFound")
        else:
            self.send(content, {"ETag": f'"{hash(content)}"', "X-Repo-Commit": COMMIT})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self.answer({"url": "https://huggingface.co/me/net"})
        elif "/preupload/" in self.path:
            files = [f["path"] for f in json.loads(body)["files"]]
            regular = {"uploadMode": "regular", "shouldIgnore": False}
            self.answer({"files": [{"path": path, **regular} for path in files]})
        elif "/commit/" in self.path:
            repo = re.match(r"/api/models/([^/]+/[^/]+)", self.path)[1]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.files[f"{repo}/{line['value']['path']}"] = content
            self.answer(
                {"commitUrl": "https://huggingface.co/me/net/commit/0", "commitOid": COMMIT}
            )
        else:
            self.answer({})

    def answer(self, value, code: str = "RepoNotFound") -> None:
        if value is None:
            self.send(b"", {"X-Error-Code": code, "X-Error-Message": "no"}, status=404)
        else:
            self.send(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, content: bytes, headers, status: int = 200) -> None:
        self.send_response(status)
        for name, text in {**headers, "Content-Length": len(content)}.items():
            self.send_header(name, str(text))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_) -> None: ...


@pytest.fixture
def server(tmp_path, monkeypatch):
    with Hub() as running:
        url = f"http://127.0.0.1:{running.server_port}"
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_TOKEN", "hf_none")
        monkeypatch.setattr(time, "sleep", lambda seconds: None)  # before it tries again
        yield running
        running.shutdown()


@pytest.fixture
def run_folder(tmp_path):
    """A run of a small network whose every choice is another than a published file's."""
    config = configs.default_config()
    config.update(stages=("fcn8s_atonce",), width=1 / 64, fc_width=3, scale=0.5, padding="same")
    config.update(init="torchvision:vgg16", manual_dir="/home/somebody/secret")
    heads = {"label": table_from_names(NAMES)}
    inputs = Inputs.of(Preprocessing("rgb", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), 1 / 255))
    params = random_parameters(runs.build_model(config, "fcn8s_atonce", heads, inputs), 0)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(config.to_json())
    described = runs.describe_run(config, heads, inputs)
    with checkpoints.StageCheckpoints(folder, "fcn8s_atonce") as saver:
        saver.save(7, init_state(params, optax.sgd(0.1)), {}, described, None)
    return folder


def test_a_run_is_pushed_and_read_back(run_folder, server, capsys, monkeypatch):
    (run_folder / "report").mkdir()
    values = dict.fromkeys(("pixel_accuracy", "mean_accuracy", "frequency_weighted_iu"), 0.5)
    classes = {NAMES[0]: {"iu": 0.25}, NAMES[1]: {"iu": None}}
    scores = {"step": 7, **values, "mean_iu": 0.125, "classes": classes}
    report = {"split": "val", "images": {"scored": 3}}
    report["stages"] = {"fcn8s_atonce": scores}
    (run_folder / "report" / "scores.json").write_text(json.dumps(report))
    before = fcn_jax.load(run_folder)

    assert cli.main(["push", str(run_folder), "me/net", "--license=mit", "--private"]) == 0
    assert capsys.readouterr().out.endswith("/me/net\n")
    assert server.created[0].get("visibility", "private") == "private"  # older: private=True
    assert set(server.files) == {"me/net/model.safetensors", "me/net/README.md"}
    card = server.files["me/net/README.md"].decode()
    for text in (
        "license: mit",
        "| 0 | sky &#124; &lt;b&gt; | 0.2500 |",
        "| 1 | tree | – |",
        "On 3 images of the split `val`: ",
        "mean iu 0.1250",
        "mean (0.4, 0.5, 0.6)",
        "hf:me/net",
        "unverified (code BSD-3-Clause)",
    ):
        assert text in card
    assert not any(b"secret" in content for content in server.files.values())

    image = np.random.default_rng(0).integers(0, 256, (37, 50, 3), np.uint8)
    for name in ("hf:me/net", "hf:me/net/model.safetensors"):
        after = fcn_jax.load(name)
        assert after.heads == before.heads
        assert (after.inputs, after.scale) == (before.inputs, before.scale)
        assert after.model.decoder == before.model.decoder
        assert after.model.backbone == before.model.backbone  # of the padding "same"
    np.testing.assert_array_equal(after.logits(image), before.logits(image))

    server.shutdown()  # from its cache
    server.server_close()
    assert fcn_jax.load("hf:me/net").scale == 0.5


def test_what_would_be_pushed_is_written(run_folder, tmp_path, capsys):
    output = tmp_path / "look"
    assert cli.main(["push", str(run_folder), "me/net", f"--output={output}"]) == 0
    card = (output / "README.md").read_text()
    assert "This checkpoint has not been scored." in card
    assert "None was given." in card
    saved = weights.load(output / "model.safetensors")
    assert saved.network.heads == {"label": table_from_names(NAMES)}
    assert saved.network.name == "fcn8s_atonce"


def test_which_file(server):
    server.files = {"me/one/vgg.npz": b"x", "me/one/README.md": b"", "me/two/a.h5": b""}
    server.files |= {"me/two/b.h5": b"", "me/none/README.md": b""}
    assert hub.fetch("hf:me/one").read_bytes() == b"x"
    for name, message in (
        ("hf:me/two", r"give one of its weight files as hf:me/two/FILE; there are a\.h5, b\.h5"),
        ("hf:me/none", "there are none"),
        ("hf:me", "give hf:OWNER/REPO"),
    ):
        with pytest.raises(ValueError, match=message):
            hub.fetch(name)
    for name, message in (
        ("hf:me/absent", "there is no such repository, or it is private"),
        ("hf:me/one/other.npz", "the repository has no such file"),
    ):
        with pytest.raises(OSError, match=f"{name} cannot be fetched: {message}"):
            fcn_jax.load(name)


def test_no_connection(server):
    server.shutdown()
    server.server_close()
    for use in (lambda: weights.load("hf:me/net/a.npz"), lambda: weights.load("hf:me/net")):
        with pytest.raises(OSError, match="cannot be fetched: no connection") as caught:
            use()
        assert "\n" not in str(caught.value)


def test_without_the_library(run_folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"pip install 'fcn-jax\[hub\]'"):
        weights.load("hf:me/net")
    assert cli.main(["push", "nowhere", "me/net"]) == 2
    assert "pip install" in capsys.readouterr().err


@pytest.mark.parametrize("licence", ["a\nb", "two words", ""])
def test_a_licence_that_is_no_name(run_folder, tmp_path, licence, capsys):
    command = ["push", str(run_folder), "me/net", f"--license={licence}"]
    assert cli.main([*command, f"--output={tmp_path / 'out'}"]) == 2
    assert "no short name of a licence" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_backbone_of_ones_own_is_not_pushed(run_folder, tmp_path):
    run = runs.load_run(run_folder)
    run.config.backbone = "own.py:net"
    with pytest.raises(ValueError, match=r"a backbone of its own \(own\.py:net\)"):
        hub.write(run, weights.of_run(run), run_folder, tmp_path / "out", "me/net")
