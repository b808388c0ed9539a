"""Trains the networks of a config, stage by stage, and writes a report.

    fcn-jax train --config=quickstart [--workdir=DIR] [--config.FIELD=VALUE ...]

In a clone also ``python train.py --config=configs/fcn8s.py``. Kill it at any moment and run the
same command again: it goes on from the last checkpoint. A run uses all devices it finds. On several
machines that share the run's folder, start the same command on each:

    srun --ntasks-per-node=8 fcn-jax train …         SLURM: a task for each GPU finds the others,
                                                     as mpirun's and a TPU pod's processes do
    fcn-jax train … --coordinator=HOST:PORT --num_processes=4 --process_id=0       and 1, 2, 3
"""

from __future__ import annotations

import argparse
import ast
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags

from fcn_jax import config as configs
from fcn_jax import devices
from fcn_jax.cli import _ends, path, program, told_in_one_line
from fcn_jax.programs import keep_compiled_programs


@told_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Trains every stage, writes the report, and returns the exit code."""
    name = program("train")
    parser = argparse.ArgumentParser(
        prog=name,
        usage=f"{name} --config=NAME [--workdir=DIR] [--config.FIELD=VALUE ...]",
        description=__doc__,
        epilog=describe_configs(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", metavar="NAME", required=True, help="a config below, or a file of your own")
    add("--workdir", metavar="DIR", help="the run's folder; default: runs/ and the config's name")
    add(
        "--coordinator",
        metavar="HOST:PORT",
        help="process 0 of several; auto: jax asks the cluster; none: train alone; default: "
        "$JAX_COORDINATOR_ADDRESS, or auto where srun, mpirun or a TPU pod started several",
    )
    add("--num_processes", metavar="N", type=int, help="default: $JAX_NUM_PROCESSES")
    add("--process_id", metavar="I", type=int, help="from 0; default: $JAX_PROCESS_ID")
    add(
        "--accept_changed_data",
        action="store_true",
        help="go on although images, masks or names of classes are no longer the run's",
    )
    add(
        "--allow_code",
        action="store_true",
        help="run the file of the own backbone of a run that config.init names",
    )
    args, fields = parser.parse_known_args(argv)

    argument = args.config.replace(":", "_").replace(",", "_")
    workdir = path(args.workdir or f"runs/{Path(argument).name.replace('.py', '')}")

    keep_compiled_programs()
    # The other processes, before anything touches the devices, as a config's file may.
    devices.join_processes(args.coordinator, args.num_processes, args.process_id)
    if jax.distributed.is_initialized():
        _ends.tell_lost_process(name)
    config = configs.load_config(args.config)
    set_fields(config, fields)

    from fcn_jax.inference import report
    from fcn_jax.models.backbones import code_of
    from fcn_jax.training.loop import Diverged, Stopped
    from fcn_jax.training.run import train

    silence_orbax()
    try:
        source = train(
            config,
            workdir,
            accept_changed_data=args.accept_changed_data,
            allow_code=args.allow_code,
        )
        if jax.process_count() == 1:
            # The code that this config names has been run; another may have crept into the folder.
            code = code_of(str(path(config.backbone)))
            report.evaluate_run(workdir, source, allow_code=code["sha256"] if code else False)
        elif jax.process_index() == 0:  # reading checkpoints alone would wait for the others
            print(f"fcn-jax eval --workdir={workdir} writes the report")
    except Stopped as stopped:
        print(f"{name}: {stopped}", file=sys.stderr)
        return 128 + stopped.signum
    except Diverged as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    return 0


def silence_orbax() -> None:
    """Leaves out the tracebacks that its threads print of errors which reach us as well."""
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)

    def hook(found: Any) -> None:
        if "Event loop is closed" not in str(found.exc_value):
            sys.__unraisablehook__(found)

    sys.unraisablehook = hook


def describe_configs() -> str:
    """The config files and all fields, for ``--help``."""
    lines = ["Configs (arguments follow a colon, such as fcn8s:32s; each file tells its own):"]
    for name, file in configs.config_files().items():
        title = file.read_text().partition("\n")[0].strip('"')
        lines.append(f"  {name:<16}{title}")
    lines += ["", "Fields. Per stage: a tuple of one value, or of one for each stage."]
    for section, fields in configs.FIELDS.items():
        lines += ["", f"{section}:"]
        for name, field in fields.items():
            lines += [f"  --config.{name}={field.default!r}", f"      {field.meaning}"]
    return "\n".join(lines)


def set_fields(config: configs.Config, given: Sequence[str]) -> None:
    """Sets fields that are given as ``--config.FIELD=VALUE``; of one given twice the last counts.

    Where ``epochs`` are given and ``steps`` are not, steps of the config's file do not count.

    Raises:
        ValueError: If a field or an argument is unknown, or a value of another type.
    """
    if strange := [text for text in given if text.startswith("-") and "config." not in text]:
        raise ValueError(f"unexpected argument {strange[0]!r}; --help lists those that there are")
    options = config.dataset_options
    # By name, since values of a tuple would be put together.
    names = (text.partition("=")[0] if "=" in text else i for i, text in enumerate(given))
    given = list(dict(zip(names, given, strict=True)).values())
    for text in list(given):  # options that the config's file does not set; the data set knows them
        option = re.fullmatch(r"--config\.dataset_options\.(\w+)=(.*)", text, re.DOTALL)
        if option and option[1] not in options:
            given.remove(text)
            with options.unlocked():
                options[option[1]] = _literal(option[2])
    values, argv = flags.FlagValues(), ["train", *given]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        rest = values(argv)[1:]
    except (AttributeError, KeyError) as error:
        name = (re.findall(r"\w+", str(error)) or [""])[0]
        for field in ("inputs", "loss_weights"):
            if any(f"config.{field}.{name}" in text for text in given):
                whole = f"--config.{field}=\"{{'{name}': …}}\""
                raise ValueError(
                    f"config.{field} has no {name!r} here; give the whole, such as {whole}"
                ) from None
        hint = configs.near_field(name) or "; --help lists all"
        raise ValueError(f"the config has no field {name!r}{hint}") from None
    except (flags.Error, TypeError, SyntaxError) as error:
        raise ValueError(f"{' '.join(str(error).split()):.500}") from None
    if rest:
        raise ValueError(f"unexpected argument {rest[0]!r}; fields are --config.FIELD=VALUE")
    named = {text.partition("=")[0].lstrip("-") for text in given}
    if "config.epochs" in named and "config.steps" not in named:
        config.steps = ()


def _literal(text: str) -> Any:
    """The Python value that a text is, or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
