"""The checkpoints of a stage: the last two and the best, each compared with its own digests.

Each holds the train state, the position in the data, what the run is, and the metrics; and a digest
of every array and of all else that is read of it, so that what is damaged is never taken for what
was saved. What a run is, and what else lies in its folder: `runs.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import hashlib
import itertools
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from fcn_jax import devices

Which = Literal["best", "last"]

State = TypeVar("State")  # a tree of arrays, of which one branch is ``params``
T = TypeVar("T")


@functools.cache
def note(text: str) -> None:
    """Tells, once, what the user of a run's folder should know of it."""
    print(f"note: {text}", file=sys.stderr)


class Damaged(ValueError):
    """A checkpoint is not what was saved; the message names the folder or the array."""


class StageCheckpoints:
    """The checkpoints of one stage; a context manager that waits for saves on leaving.

    A save is atomic: it is written beside the others and renamed when complete, so that a kill
    at any moment leaves the previous ones in place. The last two and the best are kept. Whatever
    reads one compares all of it with the digests that it carries; instead of a damaged one it
    takes the one before, and tells so.

    Args:
        workdir: The run's folder.
        stage: Such as ``fcn16s``.
        read_only: Leave damaged checkpoints in place. Else they are set aside: renamed, never
            deleted.
        tell: Is given a line of each damaged checkpoint.
    """

    def __init__(
        self,
        workdir: str | Path,
        stage: str,
        *,
        read_only: bool = False,
        tell: Callable[[str], None] = note,
    ) -> None:
        # orbax takes absolute paths only, and says so in a background thread where nobody hears it.
        self._directory = Path(workdir).expanduser().absolute() / "checkpoints" / stage
        self._read_only = read_only
        self._tell = tell
        self._manager: ocp.CheckpointManager | None = None  # made by the first save
        self._scores: dict[int, float | None] = {}  # of its checkpoints

    def __enter__(self) -> StageCheckpoints:
        return self

    def __exit__(self, *error: object) -> None:
        if self._manager is not None:
            with self._saving():
                self._manager.close()

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints in order; some may be damaged."""
        if not self._directory.is_dir():
            return []
        names = [path.name for path in self._directory.iterdir() if path.name.isdecimal()]
        return sorted(int(name) for name in names if name == str(int(name)))

    # ------------------------------------------------------------------ writing

    def save(
        self,
        step: int,
        state: Any,
        data: dict[str, Any],
        run: dict[str, Any],
        metrics: dict[str, float] | None,
    ) -> None:
        """Saves in the background; the state may be donated as soon as this returns.

        Args:
            step: Number of the checkpoint.
            state: A tree of arrays, of which one branch is ``params``.
            data: The data iterator's position.
            run: Config, classes and inputs, plain values (`describe_run`).
            metrics: ``{"mean_iu": …}`` and others where the state was scored; the best is that of
                the highest ``config.best``.

        Raises:
            ValueError: If an array holds NaN or Inf.
            OSError: If this checkpoint, or the one before in the background, cannot be written.
        """
        state = devices.gathered(state)
        digests, bad = digest_arrays(state)
        if bad:
            raise ValueError(
                f"{self._directory / str(step)}: not saved, NaN or Inf in {', '.join(bad)}"
            )
        description = {"run": run, "data": data, "metrics": metrics, "arrays": digests}
        description["digest"] = _digest_plain(description)
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state), description=ocp.args.JsonSave(description)
        )
        with self._saving():
            if self._manager is None:
                self._manager = self._open_manager()
            self._scores[step] = _score(description)
            if not self._manager.save(step, args=items):
                raise ValueError(f"{step} is not beyond the steps {self.steps()}")

    def _open_manager(self) -> ocp.CheckpointManager:
        for step in self.steps():
            try:
                self._scores[step] = _score(self._describe(step))
            except Damaged as damage:
                self._tell(f"{damage}{self._set_aside(step)}")
        return ocp.CheckpointManager(
            self._directory,
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(),
                "description": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_LastTwoAndBest(self._scores),
                cleanup_tmp_directories=True,
                lightweight_initialize=True,  # reads none of the files, which may be damaged
            ),
        )

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        """Makes one line of all that orbax may raise, and removes what is half written."""
        try:
            yield
        except Exception as error:
            if jax.process_index() == 0:
                for path in self._directory.glob("*.orbax-checkpoint-tmp*"):
                    shutil.rmtree(path, ignore_errors=True)
            raise OSError(
                f"cannot save a checkpoint in {self._directory}: {in_short(error)}; those saved "
                "before are untouched"
            ) from error

    # ------------------------------------------------------------------ reading

    def restore(self, like: State, where: Any) -> tuple[State, dict[str, Any]]:
        """The last state, of the shapes in ``like``, and its position in the data.

        ``where`` it is to lie is a sharding, or a tree of them.

        Raises:
            FileNotFoundError: If there is no checkpoint.
            Damaged: If none is whole.
            ValueError: If its arrays are others than those of ``like``.
        """

        def read(step: int) -> tuple[State, dict[str, Any]]:
            description = self._describe(step)
            expected = description["arrays"]
            _check_shapes(self._directory / str(step), like, expected)
            return self._read_arrays(step, like, expected), description["data"]

        state, data = self._first_whole("last", read)
        # Copies, not views of what was read: the train step donates its state.
        return jax.tree.map(jnp.copy, jax.device_put(state, where)), data

    def load(self, which: Which) -> tuple[int, dict[str, Any], dict[str, Any]]:
        """A checkpoint's step, what `save` was given as ``run``, and the parameters in numpy.

        Averaged ones where there are such. Where no checkpoint was scored, the last is the best.

        Raises:
            FileNotFoundError: If there is no checkpoint.
            Damaged: If none is whole.
        """

        def read(step: int) -> tuple[int, dict[str, Any], dict[str, Any]]:
            description = self._describe(step)
            saved = description["arrays"]
            averaged = any(name.startswith("average/") for name in saved)
            branch = "average" if averaged else "params"
            expected = {k: text for k, text in saved.items() if k.startswith(f"{branch}/")}
            like: Any = {}
            for name in expected:
                layer, _, kind = name.removeprefix(f"{branch}/").rpartition("/")
                like.setdefault(layer, {})[kind] = 0
            arrays = self._read_arrays(step, {branch: like}, expected)
            return step, description["run"], arrays[branch]

        return self._first_whole(which, read)

    def last(self) -> tuple[int, dict[str, Any]] | None:
        """The step of the last checkpoint, and what `save` was given as ``run``; None without any.

        Of damaged ones it tells nothing: `restore` and `load` do, which read all of a checkpoint.

        Raises:
            Damaged: If there are some, and none tells it.
        """
        damage = None
        for step in reversed(self.steps()):
            try:
                return step, self._describe(step)["run"]
            except Damaged as error:
                damage = damage or error
        if damage:
            raise self._none_whole(str(damage))
        return None

    def _first_whole(self, which: Which, read: Callable[[int], T]) -> T:
        """What ``read`` makes of the best or last checkpoint, or of the next that is whole."""
        damages: dict[int, str] = {}
        for step in self._in_order(which):
            try:
                found = read(step)
            except Damaged as error:
                found = error
            elsewhere = f"another process finds {self._directory / str(step)} damaged"
            damaged = self._anywhere(isinstance(found, Damaged))
            if damaged or isinstance(found, Damaged):
                damages[step] = str(found) if isinstance(found, Damaged) else elsewhere
                continue
            for bad, text in damages.items():
                self._tell(f"{text}{self._set_aside(bad)}; step {step} is used instead")
            return found
        if not damages:
            raise FileNotFoundError(f"{self._directory} holds no checkpoint")
        raise self._none_whole(next(iter(damages.values())))

    def _none_whole(self, damage: str) -> Damaged:
        return Damaged(
            f"{damage}, and no checkpoint in {self._directory} is whole; bring one back from a "
            "copy, or remove that folder, and training begins the stage anew"
        )

    def _in_order(self, which: Which) -> list[int]:
        """All steps, the best or last one first."""

        def rank(step: int) -> tuple[float, int]:
            try:
                score = _score(self._describe(step))
            except Damaged:
                return math.inf, step  # first, so that it is told: it may have been the best
            return -math.inf if score is None else score, step

        return sorted(self.steps(), key=rank if which == "best" else None, reverse=True)

    def _set_aside(self, step: int) -> str:
        """Renames a damaged checkpoint, and says so."""
        if self._read_only:
            return ""
        path = self._directory / str(step)
        names = (f"{step}.damaged{number or ''}" for number in itertools.count())
        aside = next(name for name in names if not path.with_name(name).exists())
        if jax.process_index() == 0:
            path.rename(path.with_name(aside))
        return f"; set aside as {aside}"

    def _anywhere(self, damaged: bool) -> bool:
        """Whether a process of the run finds a checkpoint damaged; all must use the same one."""
        if self._read_only or jax.process_count() == 1:
            return damaged
        return bool(multihost_utils.process_allgather(np.bool_(damaged)).any())

    def _describe(self, step: int) -> dict[str, Any]:
        """What `save` wrote beside the arrays. Raises Damaged."""
        path: Any = self._directory / str(step) / "description"
        with _reading(path):
            description: Any = ocp.JsonCheckpointHandler().restore(path)
            if description.pop("digest") != _digest_plain(description):
                raise Damaged(f"{path} is damaged: it is not what was saved")
            return description

    def _read_arrays(self, step: int, like: Any, expected: Mapping[str, str]) -> Any:
        """The arrays of a tree in numpy, of which the digests are known. Raises Damaged."""
        path: Any = self._directory / str(step) / "state"
        types = ocp.type_handlers
        registry = types.create_type_handler_registry(
            (np.ndarray, _Reader()),
            (jax.Array, types.ArrayHandler()),  # orbax warns where there is none
        )
        handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
        in_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
        args = ocp.args.PyTreeRestore(like, restore_args=in_numpy, partial_restore=True)
        with _reading(path):
            arrays = handler.restore(path, args=args)
            found, bad = digest_arrays(arrays)
        if wrong := sorted(
            name for name in {*found, *expected} if found.get(name) != expected.get(name)
        ):
            raise Damaged(f"{path} is damaged: {_some(wrong)} not what was saved")
        if bad:
            raise Damaged(f"{path} is unusable: NaN or Inf in {_some(bad)}")
        return arrays


class _Reader(ocp.type_handlers.NumpyHandler):
    """Reads arrays; where one cannot be read, it still waits for the others.

    orbax would end the event loop that they come to, and each would print a traceback.
    """

    async def deserialize(self, infos: Any, args: Any = None) -> Any:
        one = super().deserialize
        reads = [one([info], [arg]) for info, arg in zip(infos, args, strict=True)]
        arrays = []
        for found in await asyncio.gather(*reads, return_exceptions=True):
            if isinstance(found, BaseException):
                raise found
            arrays += found
        return arrays


class _LastTwoAndBest(preservation_policy.PreservationPolicy):
    """Keeps the last two checkpoints, and the one of the highest score."""

    def __init__(self, scores: Mapping[int, float | None]) -> None:
        self._scores = scores

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        scored = [(score, step) for step in steps if (score := self._scores.get(step)) is not None]
        kept = {*steps[-2:], *(step for _, step in sorted(scored)[-1:])}
        return [step in kept for step in steps]


def _score(description: Mapping[str, Any]) -> float | None:
    """By what the best checkpoint is chosen; None where there is nothing to compare."""
    best = description["run"].get("config", {}).get("best", "mean_iu")
    return goodness(description["metrics"] or {}, best)


def goodness(metrics: Mapping[str, float], best: str) -> float | None:
    """How good metrics are by one of them: the higher the better; None where it is NaN or absent.

    Example:
        >>> goodness({"mean_iu": 0.5, "loss": 0.75}, "mean_iu")
        0.5
        >>> goodness({"mean_iu": 0.5, "loss": 0.75}, "loss")
        -0.75
    """
    value = metrics.get(best, math.nan)
    head, _, name = best.rpartition("/")
    # Not iu/loss, of a class of that name.
    small = name == "loss" and (not head or f"{head}/mean_iu" in metrics)
    return None if math.isnan(value) else -value if small else value


# ------------------------------------------------------------------------ digests


def digest_arrays(tree: Any) -> tuple[dict[str, str], list[str]]:
    """Type, shape and digest of every array of a tree by its name, and those with NaN or Inf.

    Example:
        >>> digest_arrays({"params": {"fc": {"bias": np.zeros(3, np.float32)}}})[0]
        {'params/fc/bias': 'float32 (3,) 15ec7bf0b50732b4'}
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        leaves = list(pool.map(_digest_array, jax.tree.leaves(tree)))
    names = _names(tree)
    digests = {name: text for name, (text, _) in zip(names, leaves, strict=True)}
    return digests, [name for name, (_, good) in zip(names, leaves, strict=True) if not good]


def _digest_array(given: Any) -> tuple[str, bool]:
    array = np.asarray(given.addressable_data(0) if isinstance(given, jax.Array) else given)
    raw: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    digest = hashlib.sha256(raw).hexdigest()[:16]
    # Smallest and largest values tell it without a second array of that size.
    floating = array.size and jnp.issubdtype(array.dtype, jnp.inexact)
    finite = not floating or np.isfinite([array.min(), array.max()]).all()
    return f"{array.dtype.name} {array.shape} {digest}", bool(finite)


def _names(tree: Any) -> list[str]:
    """The names of a tree's leaves, such as ``params/conv1_1/kernel``."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]


def _digest_plain(value: Any) -> str:
    """The digest of plain values, whatever the order in dictionaries."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _check_shapes(path: Path, like: Any, saved: Mapping[str, str]) -> None:
    """Raises ValueError if a checkpoint is of another network or optimiser."""
    shapes = {
        name: f"{leaf.dtype.name} {leaf.shape}"
        for name, leaf in zip(_names(like), jax.tree.leaves(like), strict=True)
    }
    found = {name: text.rpartition(" ")[0] for name, text in saved.items()}
    if wrong := sorted(name for name in {*shapes, *found} if shapes.get(name) != found.get(name)):
        raise ValueError(
            f"{path} is of another network or optimiser: {wrong[0]} is "
            f"{found.get(wrong[0], 'absent')}, not {shapes.get(wrong[0], 'absent')}"
        )


# ------------------------------------------------------------------------ errors

_NO_DAMAGE = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE)
"""Errors of reading that do not mean that a file is damaged."""


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Makes `Damaged` of what orbax and its libraries raise of damaged files: anything."""
    try:
        yield
    except (Damaged, MemoryError):
        raise
    except Exception as error:
        text = in_short(error)
        known = getattr(error, "errno", None) in _NO_DAMAGE
        if known or any(os.strerror(number) in text for number in _NO_DAMAGE):
            raise OSError(f"{path} cannot be read: {text}") from error
        raise Damaged(f"{path} is damaged ({text})") from error


def in_short(error: BaseException) -> str:
    """What an error says, on one line: of a long message the system's part, or the beginning."""
    text = " ".join(str(error).split()) or type(error).__name__
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, *_NO_DAMAGE):
        if os.strerror(number) in text:
            return os.strerror(number)
    return text if len(text) <= 160 else f"{text[:160]}…"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"
