"""What the scripts share."""

import errno
import os
import re
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable
from logging import StreamHandler
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging
from etils import epath
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import config_path
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from . import config as cfg
from .data import Source, load_source
from .errors import TRANSIENT, InputError, RunError, did_you_mean
from .hooks import training_hooks
from .runtime import multihost
from .runtime.console import install_safe_output
from .runtime.cpu import large_pages, set_cpu_flags, use_all_cpu_cores
from .runtime.devices import enable_compilation_cache, start_jax
from .runtime.files import as_path, read_json
from .runtime.signals import exit_on_signals
from .sampling import SAMPLER_ALIASES, SAMPLERS
from .training.dry_run import dry_run

STARTED_ANEW = "DIFFUSION_DISTILLATION_STARTED_ANEW"
NOT_OUR_FAULT = TRANSIENT | {
    getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "ENOTDIR", "EEXIST")
}


class ProcessFlags:
    """The flags that connect several processes to one run."""

    def __init__(self):
        self._coordinator = flags.DEFINE_string(
            "coordinator", None, "host:port of process 0, where several processes work together; not on SLURM and TPUs."
        )
        self._num_processes = flags.DEFINE_integer("num_processes", None, "With --coordinator: how many.")
        self._process_id = flags.DEFINE_integer(
            "process_id", None, "With --coordinator: which of them this is, from 0."
        )

    def start(self, batch_size: int, dtype: str = "float32") -> None:
        """Connects the processes of the run and sets JAX up, which starts after it."""
        together = self._coordinator.value, self._num_processes.value, self._process_id.value
        if together != (None, None, None) and (None in together or not 0 <= together[2] < together[1]):
            raise InputError(
                "--coordinator={} --num_processes={} --process_id={}: give all three or none, and a process_id from 0 "
                "to num_processes - 1.".format(*together)
            )
        enable_compilation_cache()
        set_cpu_flags(dtype)
        if not multihost.start(*together):
            use_all_cpu_cores(batch_size)
            start_jax()


def dtype_of(checkpoint: epath.PathLike) -> str:
    """The type that a run's activations are in, as its config.json says; that can be read before JAX starts."""
    try:
        return read_json(as_path(checkpoint) / "config.json")["model"]["dtype"]
    except (OSError, ValueError, TypeError, KeyError):
        return "float32"


def define_config(name: str = "config") -> flags.FlagHolder:
    """Defines a flag, --config, whose value is the config that the file has, with the fields that it leaves out."""
    holder = config_flags.DEFINE_config_file(
        name,
        help_string=f"A config file, or a run's config.json. --{name}.<field>=<value> overrides a field.",
        lock_config=False,
        accept_new_attributes=True,  # of sections whose fields we do not know; `resolve` checks all other names
    )
    flags.FLAGS[name].parser = _ConfigParser(name, lock_config=False)
    return holder


def config_arguments(name: str = "config") -> dict[str, Any]:
    """The flags that gave a config on the command line, for `command`; empty if there were none."""
    flag = flags.FLAGS[name]
    if flag.value is None:
        return {}
    overrides = config_flags.get_override_values(flag)
    fields = {f"{name}.{field}": value for field, value in overrides.items()}
    return {name: config_flags.get_config_filename(flag), **fields}


def define_some(name: str, known: Iterable[str], help: str) -> flags.FlagHolder:
    """Define a flag that takes some of the known names, separated by commas. The default is all of them."""
    known = list(known)
    holder = flags.DEFINE_list(name, known, help)

    def check(given: list[str]) -> bool:
        for value in given:
            if value not in known:
                raise flags.ValidationError(f"{value!r} is unknown.{did_you_mean(value, known)}")
        return True

    flags.register_validator(name, check)
    return holder


class _SamplerParser(flags.EnumParser):
    """A name in `SAMPLERS`, or the published name of one."""

    def parse(self, argument: str) -> str:
        """The name in `SAMPLERS`."""
        return super().parse(SAMPLER_ALIASES.get(argument, argument))


def define_sampler() -> flags.FlagHolder:
    """Define --sampler, whose value is a name in `SAMPLERS`, or None for the config's."""
    return flags.DEFINE(
        _SamplerParser(list(SAMPLERS)), "sampler", None, "Default: the config's; see `sampling.SAMPLERS`."
    )


class RunFlags(ProcessFlags):
    """The flags of a script that trains: --config, --workdir, and those that connect several processes."""

    def __init__(self):
        super().__init__()
        self._config = define_config()
        self._workdir = flags.DEFINE_string("workdir", None, "The run's folder; made if it is missing.", required=True)
        self._change = flags.DEFINE_bool(
            "change",
            False,
            "Go on with this config in a workdir of another one; config_history.jsonl keeps which.",
        )
        self._print_config = flags.DEFINE_bool("print_config", False, "Print the resolved config as JSON and exit.")
        self._dry_run = flags.DEFINE_bool(
            "dry_run", False, "Check all that can be checked before compiling, print what the run would do, and exit."
        )
        self._wandb = flags.DEFINE_string("wandb_project", None, "Send metrics to this project of W&B too.")
        flags.mark_flag_as_required("config")

    def start(self, batch_size: int, dtype: str = "float32") -> None:
        """As that of `ProcessFlags`; where training is faster in large pages of memory, the program starts anew."""
        _start_anew(large_pages())
        super().start(batch_size, dtype)

    def config(self, *, distillation: bool) -> ConfigDict:
        """Return the resolved config, checked to have or lack a `distillation` section. --print_config exits here."""
        config = self._config.value
        if distillation != ("distillation" in config):
            has, script = ("no", "train") if distillation else ("a", "distill")
            raise InputError(f"This config has {has} section config.distillation: run it with scripts/{script}.py.")
        config = cfg.resolve(config)
        if self._print_config.value:
            _print_and_exit(config.to_json(indent=2))
        return config

    @property
    def workdir(self) -> epath.Path:
        """The run's folder."""
        return as_path(self._workdir.value)

    def source(self, config: ConfigDict) -> Source:
        """The images of a config."""
        multihost.print_on_main(f"{self.workdir}: reading the data, {config.dataset.name}")
        return load_source(config.dataset.name, **config.dataset.args)

    def dry_run(self, config: ConfigDict, source: Source) -> bool:
        """Return whether --dry_run is set. If so, check the run and print what it would do. JAX must have started."""
        if self._dry_run.value:
            hooks = training_hooks(config, source, self.workdir)
            dry_run(config, self.workdir, source, change=self._change.value, load_model=hooks["load_model"])
        return self._dry_run.value

    def options(self, config: ConfigDict, source: Source) -> dict[str, Any]:
        """The keyword arguments of `train` and `run_ladder` that the flags set. JAX must have started."""
        hooks = training_hooks(config, source, self.workdir, self._wandb.value)
        return {**hooks, "change": self._change.value}


def _start_anew(variables: dict[str, str]) -> None:
    """Starts the command of this process anew, once, with these variables too, if there are any.

    Not where a script runs within another program, whose command is another one.
    """
    ours = sys.argv[0] in sys.orig_argv[-len(sys.argv) :][:1] and Path(sys.argv[0]).is_file()
    if variables and ours and STARTED_ANEW not in os.environ:
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | variables | {STARTED_ANEW: "1"})


HELP = ("--help", "-help", "--helpshort", "-helpshort", "-h", "-?")
MISSING = re.compile(r"flag --(\w+)=None: .* must have a value other than None")
FIELD = re.compile(r"^(--?\w+\.)([^=]+)")
RUNG = re.compile(r"(?<=\.distillation\.stages)\.(\d+)(?=[.=])")


class _ConfigParser(ConfigFileFlagParser):
    def parse(self, path: str) -> ConfigDict:
        path = os.path.expanduser(path)
        if not Path(path).is_file():
            close = did_you_mean(path, map(str, Path(path).parent.glob("*.py")))
            raise ValueError(f"there is no such file; ours are in configs/.{close if close.startswith(' Did') else ''}")
        try:
            config = cfg.load(path)
        except Exception as error:  # the user's code may raise anything
            where = traceback.extract_tb(error.__traceback__)[-1]
            raise ValueError(f"{type(error).__name__} in {where.filename}:{where.lineno}: {error}") from error
        if not isinstance(config, ConfigDict):
            raise ValueError(f"its get_config() must return a ConfigDict, not {config!r:.200}")
        self._reset_args_of_another_method(config)
        cfg.add_missing(config)
        for rung in re.findall(r'\.distillation\.stages\["(\d+)"\]', " ".join(sys.argv)):
            if "distillation" in config and rung not in config.distillation.stages:
                config.distillation.stages[rung] = ConfigDict()
        for argument in sys.argv:
            if argument.startswith(f"--{self.name}.") and argument.endswith("=None"):
                _forget(config, argument.removeprefix(f"--{self.name}.").removesuffix("=None"))
        return config

    def _reset_args_of_another_method(self, config: ConfigDict) -> None:
        """Where the command line sets another method than the file, drop the options that the file sets for its own."""
        flag = f"--{self.name}.distillation.method="
        method = next((value.removeprefix(flag) for value in reversed(sys.argv) if value.startswith(flag)), None)
        if method is not None and "distillation" in config and method != config.distillation.get("method"):
            config.distillation.method = method
            config.distillation.args = ConfigDict()


def _spell_field(argument: str) -> str:
    """The argument with its config field as this version names it and ml_collections spells it."""

    def current(match: re.Match) -> str:
        return match[1] + cfg.current_field(match[2])

    return RUNG.sub(r'["\1"]', FIELD.sub(current, argument))


def _forget(config: ConfigDict, field: str) -> None:
    """Remove a field, so that the command line can set it to None, which is not of the field's type."""
    *sections, name = config_path.split(field)
    for section in sections:
        config = config.get(section, {})
    if name in config:
        del config[name]


def run(main: Callable[[], None]) -> None:
    """Runs a script's main function after parsing its flags.

    The exit status is 0 for success, 2 for bad input and 1 for a run that cannot go on, each of them with one line on
    stderr; 128 + the number of the signal after SIGINT or SIGTERM; and 1, with a traceback, for a bug.
    """

    def checked(argv: list[str]) -> None:
        _quieten_libraries()
        try:
            with exit_on_signals():
                main()
        except KeyboardInterrupt:  # raised by a run once it is saved
            sys.exit(128 + signal.SIGINT)
        except InputError as error:
            _fail(str(error), 2)
        except RunError as error:
            _fail(str(error), 1)
        except OSError as error:
            if error.errno not in NOT_OUR_FAULT:
                _show_bug(error)
            _fail(f"{error}. Finished checkpoints are untouched.", 1)
        except Exception as error:
            _show_bug(error)

    install_safe_output()
    sys.argv[1:] = map(_spell_field, sys.argv[1:])
    sys.path.append(os.getcwd())  # where a config may name functions of the user's own
    app.run(checked, flags_parser=_parse_flags)


def saved(what: str, following: str = "") -> None:
    """Print what a script saved and where, and what to run next."""
    multihost.print_on_main(f"Saved {what}." + f"\nNext: {following}" * bool(following))


def command(script: str, **flags: Any) -> str:
    """The shell command that runs a script with these flags."""
    return shlex.join(["python", f"scripts/{script}.py", *[f"--{name}={value}" for name, value in flags.items()]])


def counted(number: int, noun: str) -> str:
    """A number with its noun, such as '1 image' or '2 images'."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _fail(message: str, status: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    multihost.stop_all(message, status)


def _show_bug(error: Exception) -> NoReturn:
    traceback.print_exception(error)
    multihost.stop_all(repr(error), 1)


def _quieten_libraries() -> None:
    """Keeps from the user what libraries print of errors besides raising them, as when they read a damaged file."""
    logging.set_verbosity(logging.WARNING)
    root = logging.get_absl_logger().root
    for handler in [handler for handler in root.handlers if type(handler) is StreamHandler]:
        root.removeHandler(handler)  # orbax causes it to be added at import, and every warning would be printed twice
    logging.get_absl_handler().python_handler.stream = sys.stderr  # which `install_safe_output` has replaced
    logging.get_absl_handler().addFilter(lambda record: not ("orbax" in record.pathname or record.name == "asyncio"))
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry.*MemoryError", UserWarning)
    sys.unraisablehook = _show_what_is_ours


def _show_what_is_ours(unraisable: Any) -> None:
    """For exceptions that nobody could catch."""
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(unraisable.exc_traceback)]
    if not any("orbax" in file or "asyncio" in file for file in files):
        sys.__unraisablehook__(unraisable)


def _parse_flags(argv: list[str]) -> list[str]:
    """Parse the flags. For --help, print the help and exit; for a bad flag, print an error and exit."""
    asked = any(argument in HELP for argument in argv)
    wrong = None
    try:
        argv = flags.FLAGS([argument for argument in argv if argument not in HELP])
        if len(argv) > 1:
            wrong = f"Unexpected argument {argv[1]!r}: flags are given as --name=value."
    except KeyError as error:  # --config.<section>.<field> of a section that is not there
        wrong = f"Unknown field of --config: {error.args[0]}"
    except (flags.Error, LookupError, TypeError, ValueError) as error:
        missing = MISSING.match(str(error))
        wrong = f"--{missing[1]} is missing." if missing else str(error)
        if missing and asked:  # required flags are checked last, so nothing else is wrong
            wrong = None
    if wrong is not None:
        sentence = " ".join(wrong.split())
        print(f"error: {sentence}{'' if sentence[-1] in '.?' else '.'} --help lists all flags.", file=sys.stderr)
        sys.exit(2)
    if asked:
        _print_and_exit(_help())
    return argv


def _print_and_exit(text: str) -> NoReturn:
    """Print what was asked for, and end the process."""
    print(text, flush=True)
    sys.exit(0)


def _help() -> str:
    """The text of --help: what the script does, its flags, and the fields and values of its config."""
    for flag in flags.FLAGS.get_flags_for_module(__name__):
        if "." not in flag.name:  # a name with a dot is a config field
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    parts = [sys.modules["__main__"].__doc__ or "", flags.FLAGS.main_module_help()]
    for name in flags.FLAGS:
        if isinstance(flags.FLAGS[name].parser, _ConfigParser):
            fields = "\n".join(f"  {line}" for line in cfg.listing(name, flags.FLAGS[name].value))
            parts.append(f"Fields of --{name}, explained in docs/configs.md (None leaves a field unset):\n{fields}")
    return "\n\n".join(part.strip("\n") for part in parts)
