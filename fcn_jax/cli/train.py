"""Trains the networks of a config, stage by stage, and writes a report.

    python train.py --config=configs/fcn8s.py [--workdir=DIR] [--config.FIELD=VALUE ...]

Every field and its meaning: fcn_jax/config.py. Kill it at any moment and run the same command
again: it goes on from the last checkpoint. A run uses all devices it finds. On several machines
that share the run's folder, start the same command on each:

    srun --ntasks-per-node=8 python train.py …       SLURM: a task for each GPU finds the others,
                                                     as mpirun's and a TPU pod's processes do
    python train.py … --coordinator=HOST:PORT --num_processes=4 --process_id=0       and 1, 2, 3
"""

from __future__ import annotations

import difflib
import re
import sys
from pathlib import Path

from absl import flags, logging
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, such as configs/fcn8s.py.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run's folder; default: runs/ and the config file's name."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "HOST:PORT of process 0 of several; auto: jax asks the cluster; none: train alone. Default: "
    "$JAX_COORDINATOR_ADDRESS; auto where srun, mpirun or a TPU pod started several processes.",
)
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "Processes that train together; default: $JAX_NUM_PROCESSES."
)
PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "This process, counted from 0; default: $JAX_PROCESS_ID."
)
flags.mark_flag_as_required("config")


def main(argv: list[str] | None = None) -> int:
    """Trains every stage, writes the report, and returns the exit code."""
    argv = parse([sys.argv[0], *(sys.argv[1:] if argv is None else argv)])
    if len(argv) > 1:
        return fail(f"unexpected argument {argv[1]!r}; fields are set as --config.FIELD=VALUE")
    config_file = config_flags.get_config_filename(flags.FLAGS["config"]).split(":")[0]
    workdir = Path(WORKDIR.value or Path("runs") / Path(config_file).stem)

    logging.set_verbosity(logging.ERROR)  # below it orbax tells a great deal

    import jax

    from fcn_jax import devices
    from fcn_jax.devices import keep_compiled_programs
    from fcn_jax.inference import report
    from fcn_jax.training.run import train
    from fcn_jax.training.watch import Diverged, Stopped

    keep_compiled_programs()
    try:
        # ---- The other processes, before anything touches the devices
        devices.join_processes(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)

        # ---- Every stage, then the report
        source = train(CONFIG.value, workdir)
        if jax.process_count() == 1:
            report.evaluate_run(workdir, source)
        elif devices.is_first_process():  # reading checkpoints alone would wait for the others
            print(f"python eval.py --workdir={workdir} writes the report")
    except Stopped as stopped:
        print(f"train.py: {stopped}", file=sys.stderr)
        return 128 + stopped.signum
    except KeyboardInterrupt:  # while the data are prepared or the report written
        return fail("interrupted")
    except (ValueError, OSError, Diverged) as error:
        return fail(str(error))
    return 0


def fail(message: str) -> int:
    """Says what is wrong, and returns the exit code."""
    print(f"train.py: {message}", file=sys.stderr)
    return 2


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; a mistake is one line that names the remedy, not a traceback."""
    try:
        return flags.FLAGS(argv)
    except AttributeError as error:
        message = _unknown_field(error)
    except (flags.Error, TypeError, ValueError, OSError, SyntaxError) as error:
        message = " ".join(str(error).split())
        if "Traceback" in message:  # of the config file: what it says at its end
            message = str(error).strip().splitlines()[-1]
    sys.exit(fail(message))


def _unknown_field(error: AttributeError) -> str:
    """ml_collections' error for a field that does not exist, as one sentence."""
    from fcn_jax.config import default_config

    names = re.findall(r"\w+", str(error))
    field = names[0] if names else ""
    nested = [
        section
        for section in ("inputs", "loss_weights")
        if any(f"config.{section}." in a for a in sys.argv)
    ]
    if nested:
        return (
            f"config.{nested[0]} has no {field!r} here; give the whole, such as "
            f"--config.{nested[0]}=\"{{'{field}': …}}\""
        )
    near = difflib.get_close_matches(field, list(default_config()), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "fcn_jax/config.py lists all fields"
    return f"the config has no field {field!r}; {hint}"
