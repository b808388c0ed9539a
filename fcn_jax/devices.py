"""Devices and processes: where arrays lie, and what processes that train together tell each other.

A program may run as several processes, on one machine or many, each with devices of its own. All
take the same steps in the same order, and arrays are spread over the devices of all.
"""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import os
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

# ======================================================================== where arrays lie


def find_devices() -> tuple[int, int]:
    """The number of devices of all processes, and of this one.

    Raises:
        ValueError: If JAX_PLATFORMS asks for others.
    """
    try:
        return len(jax.devices()), jax.local_device_count()
    except (RuntimeError, AssertionError) as error:
        asked, reason = os.environ.get("JAX_PLATFORMS", ""), str(error).partition(".")[0]
        raise ValueError(
            f"JAX_PLATFORMS={asked}: there is no such device{reason and f' ({reason})'}; unset it, "
            "or install jax for that device"
        ) from None


def peak_memory() -> int | None:
    """The most bytes that this program has held: on a device, or on a CPU in all; None: unknown."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    if peaks := [of["peak_bytes_in_use"] for of in stats if "peak_bytes_in_use" in of]:
        return max(peaks)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def return_memory() -> None:
    """Returns to the system what was freed: glibc keeps hundreds of MiB that compilers took."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # other systems have other ways
        ctypes.CDLL(None).malloc_trim(0)


def data_mesh(spatial_shards: int = 1) -> Mesh:
    """All devices of all processes, along the axes ``data`` and ``height``.

    Args:
        spatial_shards: Devices that share each image, a part of its rows each.

    Raises:
        ValueError: If the devices cannot be divided so, or JAX_PLATFORMS asks for others.
    """
    devices, own = find_devices()
    if devices % spatial_shards:
        raise ValueError(
            f"config.spatial_shards = {spatial_shards} does not divide the {devices} device(s); "
            f"choose one of {', '.join(str(n) for n in range(1, devices + 1) if devices % n == 0)}"
        )
    if own % spatial_shards and spatial_shards % own:
        raise ValueError(
            f"config.spatial_shards = {spatial_shards} neither divides the {own} devices of a "
            "process nor is a multiple of them; images would be cut in the middle of a process"
        )
    shape, axes = (devices // spatial_shards, spatial_shards), ("data", "height")
    return jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * 2)


def local_mesh() -> Mesh:
    """The devices of this process, along the axis ``data``: it computes on them alone."""
    devices = jax.local_devices()
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def batch_axis(mesh: Mesh) -> str:
    """The axis of a mesh that splits batches: ``data``, or where there is none, the first.

    ``height`` splits the rows of images, and along other axes all devices compute the same.

    Raises:
        ValueError: If there is no axis but ``height``.
    """
    names = [name for name in mesh.axis_names if name != "height"]
    if not names:
        raise ValueError("the mesh has no axis but height; give it one for batches, such as data")
    return "data" if "data" in names else names[0]


def automatic(mesh: Mesh) -> Mesh:
    """A mesh, such as `jax.make_mesh` gives, with axes along which the compiler splits arrays.

    By default its axes are of the type Explicit: every operation would have to say how its result
    is split.

    Raises:
        ValueError: Inside `jax.set_mesh` of such axes, where arrays would have them all the same.
    """
    around = jax.sharding.get_abstract_mesh()
    if AxisType.Explicit in around.axis_types:
        raise ValueError(
            f"jax.set_mesh is in force with the axes {', '.join(around.axis_names)} of the type "
            "Explicit: leave it, or make its mesh with axis_types=(jax.sharding.AxisType.Auto,) * "
            f"{len(around.axis_names)}"
        )
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what is whole on every device."""
    return NamedSharding(automatic(mesh), PartitionSpec())


def state_shardings(tree: Any, mesh: Mesh, *, split: bool) -> Any:
    """Where the arrays of a state lie: on every device, or each in parts over the batch's axis.

    An array is split along the longest of its axes that the devices there divide, the last of
    several; without one it is on every device. `fcn_jax.config.FIELDS` has it as
    ``shard_parameters``.

    Args:
        tree: Arrays, or their shapes.

    Returns:
        A sharding of all, or a tree of them, as `jax.device_put` takes it.
    """
    if not split:
        return replicated(mesh)
    mesh, name = automatic(mesh), batch_axis(mesh)

    def of_array(array: Any) -> NamedSharding:
        sides = list(enumerate(array.shape))
        divisible = [(side, axis) for axis, side in sides if side and side % mesh.shape[name] == 0]
        if not divisible:
            return NamedSharding(mesh, PartitionSpec())
        _, longest = max(divisible)
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, name))

    return jax.tree.map(of_array, tree)


def gathered(tree: Any) -> Any:
    """The same arrays, those that are in parts whole on every device that has one of these."""

    def gather(array: Any) -> Any:
        if not isinstance(array, Array) or array.is_fully_replicated:
            return array
        split: Any = array.sharding
        return jax.device_put(array, NamedSharding(split.mesh, PartitionSpec()))

    return jax.tree.map(gather, tree)


def batch_sharding(mesh: Mesh, rank: int = 4) -> NamedSharding:
    """The sharding of an array of a batch: examples over `batch_axis`, rows over ``height``.

    Arrays of a rank of three or more, (b, h, …), have rows; the sizes of images do not.
    """
    axes = (batch_axis(mesh), *(["height"] if rank >= 3 and "height" in mesh.shape else []))
    return NamedSharding(automatic(mesh), PartitionSpec(*axes))


def shardings(mesh: Mesh | None) -> tuple[int, NamedSharding | None, NamedSharding | None]:
    """Parts of a batch whose images stay whole, and where state and batches go; None: one device.

    For prediction and evaluation, whose batches have images of many heights.
    """
    if mesh is None:
        return 1, None, None
    return mesh.shape[batch_axis(mesh)], replicated(mesh), batch_sharding(mesh, rank=1)


def batch_part(mesh: Mesh) -> tuple[int, int]:
    """Which part of each batch this process reads, and into how many parts it is divided.

    Processes whose devices share images read the same ones.
    """
    rows_of: dict[int, list[int]] = {}
    axis = batch_axis(mesh)
    of_row = np.moveaxis(mesh.devices, mesh.axis_names.index(axis), 0).reshape(mesh.shape[axis], -1)
    for row, devices in enumerate(of_row):
        for process in {device.process_index for device in devices}:
            rows_of.setdefault(process, []).append(row)
    parts = sorted({tuple(rows) for rows in rows_of.values()})
    return parts.index(tuple(rows_of[jax.process_index()])), len(parts)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, Array]:
    """Puts a batch on the devices of all processes; returns before the copies are made.

    It is this process's part (`batch_part`), with all rows of each image, whose number must be a
    multiple of the mesh's axis ``height``.
    """
    shardings = {name: batch_sharding(mesh, value.ndim) for name, value in batch.items()}
    if jax.process_count() == 1:
        return jax.device_put(dict(batch), shardings)
    _, parts = batch_part(mesh)
    return {
        name: jax.make_array_from_process_local_data(
            shardings[name], value, (parts * len(value), *value.shape[1:])
        )
        for name, value in batch.items()
    }


# ======================================================================== processes


def _launched() -> tuple[int, int] | None:
    """How many processes were started together, and which this is; None if that is not said.

    jax itself would take the tasks of a whole SLURM job for those of a program, and does not know
    that one was started alone.
    """
    for names in (
        ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"),  # set by hand
        ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),  # srun
        ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),  # mpirun of Open MPI
    ):
        if all(os.environ.get(name, "").isdecimal() for name in names):
            number, this = (int(os.environ[name]) for name in names)
            return number, this
    return None


class Launch(NamedTuple):
    """Processes that were started together and work without each other."""

    number: int
    this: int
    name: str  # another one in each launch, as far as the launcher has one


def share_work() -> Launch:
    """The processes that srun or mpirun started; call it before jax sees a device.

    Where several of them run on one machine of several GPUs and all see all of these, this process
    keeps to one. They are not joined: one that dies leaves the others alone.
    """
    number, this = _launched() or (1, 0)
    here = [os.environ.get(name) for name in ("SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK")]
    local = next((int(text) for text in here if text and text.isdecimal()), this)
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        gpus = len(listed.split(",") if listed is not None else os.listdir(_GPUS))
    except OSError:
        gpus = 0
    if number > 1 and gpus > 1:
        jax.config.update("jax_cuda_visible_devices", str(local % gpus))
    step = (
        os.environ.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "PMIX_NAMESPACE")
    )
    return Launch(number, this, "/".join(step))


_GPUS = "/proc/driver/nvidia/gpus"


def join_processes(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins the processes that train together; call it before jax sees a device.

    Without arguments a program that srun or mpirun started several times, or one on a TPU pod
    joins the others, and any other program stays alone.

    Args:
        coordinator: ``HOST:PORT`` of process 0, ``auto`` to let jax ask the cluster, or ``none``
            to stay alone; by default the environment variable JAX_COORDINATOR_ADDRESS.
        num_processes, process_id: By default what the launcher says.

    Raises:
        ValueError: If it is not said who the others are, or they cannot be reached.
    """
    told = _launched() or (None, None)
    on_pod = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")  # one of several machines
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if coordinator is None and (num_processes is not None or process_id is not None):
        raise ValueError("--num_processes and --process_id need --coordinator=HOST:PORT")
    if coordinator == "none" or (coordinator is None and told[0] in (None, 1) and not on_pod):
        return
    address = None if coordinator == "auto" else coordinator
    if address is not None and not address.rpartition(":")[2].isdecimal():
        raise ValueError(f"--coordinator={coordinator} must be HOST:PORT, auto or none")
    # A process that is gone ends the others within a minute.
    heartbeat: dict[str, Any] = {"heartbeat_timeout_seconds": 30}
    known = inspect.signature(jax.distributed.initialize).parameters
    try:
        jax.distributed.initialize(
            address,
            told[0] if num_processes is None else num_processes,
            told[1] if process_id is None else process_id,
            **{name: value for name, value in heartbeat.items() if name in known},
        )
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"cannot join the other processes ({str(error).splitlines()[0]}); give every process "
            "--coordinator=HOST:PORT --num_processes=N --process_id=I, or --coordinator=none"
        ) from None


def sum_over_processes(counts: Any) -> Any:
    """The sums of the processes' numpy arrays, a tree of them: int64, which stay exact, or float64.

    Waits for the devices.
    """
    if jax.process_count() == 1:
        return counts
    # Without 64 bits jax would cut the numbers: they travel as two halves.
    gathered = multihost_utils.process_allgather(jax.tree.map(lambda x: x.view(np.uint32), counts))
    return jax.tree.map(lambda x, y: np.asarray(x).view(y.dtype).sum(axis=0), gathered, counts)
