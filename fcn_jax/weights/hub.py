"""Weights on the Hugging Face Hub: read by ``hf:OWNER/REPO``, and a run made into a repository.

A repository of ours holds ``model.safetensors``, which tells all of the network that predicting
needs, and ``README.md``, the model card. Any other weight file that is read can be named as well.
"""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcn_jax.models.backbones import BACKBONES
from fcn_jax.weights.arrays import Weights
from fcn_jax.weights.published import PUBLISHED
from fcn_jax.weights.saving import save

if TYPE_CHECKING:
    from fcn_jax.runs import Run

FILE = "model.safetensors"
SUFFIXES = (".safetensors", ".npz", ".npy", ".h5", ".caffemodel", ".pth", ".pt", ".bin")

# ======================================================================== reading


def fetch(name: str) -> Path:
    """The file of ``hf:OWNER/REPO/FILE``, in huggingface_hub's own cache.

    Without a file it is ``model.safetensors``, or else the only weight file that there is.

    Raises:
        ValueError: If the name is none, huggingface_hub is missing, or there are several files.
        OSError: If there is no such repository or file, or no connection.
    """
    parts = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:/(.+))?", name)
    if parts is None:
        raise ValueError(f"{name}: give hf:OWNER/REPO, or hf:OWNER/REPO/FILE")
    repo, file = parts[1], parts[2]
    hub = library()
    try:
        if file is not None:
            return Path(hub.hf_hub_download(repo, file))
        try:
            return Path(hub.hf_hub_download(repo, FILE))
        except hub.errors.RemoteEntryNotFoundError:
            files = [f for f in hub.HfApi().list_repo_files(repo) if Path(f).suffix in SUFFIXES]
            if len(files) == 1:
                return Path(hub.hf_hub_download(repo, files[0]))
    except Exception as error:  # of several HTTP libraries
        raise OSError(f"{name} cannot be fetched: {_in_short(error)}") from error
    given = ", ".join(files) or "none"
    raise ValueError(f"{name}: give one of its weight files as hf:{repo}/FILE; there are {given}")


def library() -> Any:
    """The package huggingface_hub.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise ValueError(
            "the Hugging Face Hub needs huggingface_hub: pip install 'fcn-jax[hub]'"
        ) from None
    return huggingface_hub


def _in_short(error: Exception) -> str:
    known = {
        "GatedRepoError": "its owner must let you in first; then log in: hf auth login",
        "RepositoryNotFoundError": "there is no such repository, or it is private and you are not "
        "logged in (hf auth login)",
        "RemoteEntryNotFoundError": "the repository has no such file",
        "LocalEntryNotFoundError": "no connection, and it is not in the cache",
        "LocalTokenNotFoundError": "you are not logged in (hf auth login)",
        "ConnectError": "no connection",
    }
    return known.get(type(error).__name__) or " ".join(str(error).split())[:300]


# ======================================================================== writing


def write(
    run: Run, weights: Weights, workdir: Path, folder: Path, repo: str, licence: str = "unknown"
) -> None:
    """Writes what a repository of a run holds: its weights, and the model card.

    Args:
        run: The trained network.
        weights: Those of the run (`fcn_jax.weights.of_run`).
        workdir: Its run's folder, whose report has the scores.
        folder: Where to; made if absent.
        repo: ``OWNER/REPO``, which the card names.
        licence: One of the Hub's short names, such as ``apache-2.0``.

    Raises:
        ValueError: If the run has a backbone of its own, which weights alone do not tell.
    """
    if run.config.backbone not in BACKBONES:
        raise ValueError(
            f"{workdir} has a backbone of its own ({run.config.backbone}), which nobody could load"
        )
    if not re.fullmatch(r"[\w.-]+", licence):
        raise ValueError(f"{licence!r} is no short name of a licence, such as apache-2.0")
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / FILE, weights)
    (folder / "README.md").write_text(model_card(run, workdir, repo, licence), encoding="utf-8")


def model_card(run: Run, workdir: Path, repo: str, licence: str = "unknown") -> str:
    """The README of a repository: what the network is, its scores, its data, and how to use it."""
    config: Any = run.config
    start = config.init if config.init in PUBLISHED else ""
    started = f", started from `{start}` (licence: {PUBLISHED[start].licence})" if start else ""
    lines = [
        "---",
        f"license: {licence}",
        "library_name: fcn_jax",
        "pipeline_tag: image-segmentation",
        "tags: [semantic-segmentation, fcn, jax]",
        "---",
        "",
        f"# {repo.partition('/')[2]}",
        "",
        f"A Fully Convolutional Network (`{run.stage}` on `{config.backbone}`) for semantic "
        f"segmentation, trained with [fcn_jax](https://github.com/fcn-jax/fcn_jax){started}.",
        "",
        "```bash",
        f"fcn-jax predict --weights=hf:{repo} photos/ --output=predictions",
        "```",
        "```python",
        "import fcn_jax",
        "",
        f'predictor = fcn_jax.load("hf:{repo}")',
        'labels = predictor("photo.jpg")  # uint8 (height, width)',
        "```",
        "",
        "## Data",
        "",
        f"`{_text(config.dataset)}`, trained on {len(run.trained_on)} images, for {run.step} steps "
        f"of {config.batch_size} in the last stage.",
    ]
    for head, table in run.heads.items():
        scores, remark = _scores(workdir, run, head)
        title = "Classes and scores" + f" of {_text(head)}" * (len(run.heads) > 1)
        lines += ["", f"## {title}", "", remark, "", "| | class | IoU |", "|---|---|---|"]
        for number, name in enumerate(table.names):
            iu = scores.get("classes", {}).get(name, {}).get("iu")
            lines.append(f"| {number} | {_text(name)} | {'–' if iu is None else f'{iu:.4f}'} |")
    lines += ["", "## Preprocessing", "", "The weight file tells it, and fcn_jax applies it:", ""]
    for name, parts in run.inputs.entries:
        for modality, way in parts:
            fields = ", ".join(f"{field} {value}" for field, value in way.to_dict().items())
            lines.append(f"- input `{name}` reads `{modality}`: {fields}")
    lines += [f"- scale {config.scale:g}, padding `{config.padding}`", "", "## Licence", ""]
    lines += [f"`{licence}`" if licence != "unknown" else "None was given.", ""]
    return "\n".join(lines)


def _scores(workdir: Path, run: Run, head: str) -> tuple[dict[str, Any], str]:
    """The scores of a head in a run's report, if it is of this checkpoint; and them in words."""
    try:
        report = json.loads((workdir / "report" / "scores.json").read_text(encoding="utf-8"))
        stages = report["stages"]
        scores = stages.get(run.stage) or stages[f"{run.stage}_{head}"]
        if scores["step"] != run.step:
            raise ValueError("of another checkpoint")
        names = ("pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu")
        values = ", ".join(f"{name.replace('_', ' ')} {scores[name]:.4f}" for name in names)
        where = f" of the split `{_text(report['split'])}`" if report["split"] else ""
        return scores, f"On {report['images']['scored']} images{where}: {values}."
    except (OSError, ValueError, LookupError, TypeError):
        return {}, "This checkpoint has not been scored."


def _text(name: str) -> str:
    """A name in a table of Markdown."""
    return html.escape(" ".join(name.split())).replace("|", "&#124;")


def push(folder: Path, repo: str, private: bool = False) -> str:
    """Uploads a folder as a model's repository, which is made if absent; returns its address.

    Raises:
        ValueError: If huggingface_hub is missing.
        OSError: If it cannot be uploaded.
    """
    hub = library()
    try:
        api = hub.HfApi()
        url = api.create_repo(repo, private=private or None, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="fcn-jax push")
    except Exception as error:  # of several HTTP libraries
        raise OSError(f"{repo} cannot be pushed: {_in_short(error)}") from error
    return str(url)
