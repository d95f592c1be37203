"""The command line that the scripts share: flags, start-up, error messages and exit status."""

import errno
import os
import re
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from logging import Formatter, LogRecord, StreamHandler
from typing import Any, NoReturn

from absl import app, flags, logging
from etils import epath
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import config_path
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from . import config as cfg
from .data import DATASETS, Source, arguments_of, load_source
from .errors import TRANSIENT, InputError, RunError, did_you_mean
from .hooks import training_hooks
from .networks.model import check_guidance_interval
from .runtime import multihost
from .runtime.console import install_safe_output
from .runtime.cpu import set_cpu_flags, use_all_cpu_cores
from .runtime.devices import enable_compilation_cache, start_jax
from .runtime.files import absolute, as_path, read_json
from .runtime.signals import exit_on_signals
from .sampling import SAMPLER_ALIASES, SAMPLERS
from .training.dry_run import dry_run

# An OSError with one of these comes from the machine and is printed in one line. Any other is a bug.
MACHINE_ERRORS = TRANSIENT | {
    getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "ENOTDIR", "EEXIST")
}


class ProcessFlags:
    """The flags that connect the processes of one run."""

    def __init__(self):
        self._coordinator = flags.DEFINE_string(
            "coordinator", None, "host:port of process 0, for a run of several processes; not needed on SLURM and TPUs."
        )
        self._num_processes = flags.DEFINE_integer(
            "num_processes", None, "With --coordinator: the number of processes."
        )
        self._process_id = flags.DEFINE_integer(
            "process_id", None, "With --coordinator: the index of this process, from 0."
        )

    def start(
        self, batch_size: int, dtype: str = "float32", microbatch_size: int = 0, *, training: bool = True
    ) -> None:
        """Connect the processes of the run and start JAX.

        Args:
          batch_size: images per batch; small batches use fewer CPU cores.
          dtype: of the activations, 'float32' or 'bfloat16'.
          microbatch_size: images per forward and backward pass, or 0 for the whole batch.
          training: whether the script computes gradients.

        Raises:
          InputError: if only some of the flags are set, or if the process id is out of range.
        """
        coordinator = self._coordinator.value
        num_processes = self._num_processes.value
        process_id = self._process_id.value
        values = [coordinator, num_processes, process_id]
        if values != [None, None, None] and (None in values or not 0 <= process_id < num_processes):
            raise InputError(
                f"--coordinator={coordinator} --num_processes={num_processes} --process_id={process_id}: set all three "
                "or none, and --process_id from 0 to --num_processes - 1."
            )
        enable_compilation_cache()
        set_cpu_flags(dtype, training=training)
        if not multihost.start(coordinator, num_processes, process_id):
            use_all_cpu_cores(batch_size, microbatch_size)
            start_jax()


def dtype_of(checkpoint: epath.PathLike) -> str:
    """The activations' type in the config.json of a run or an archive, read before JAX starts; float32 without it.

    It is bfloat16 if the network or the autoencoder computes in it.
    """
    try:
        values = read_json(as_path(checkpoint) / "config.json")
        values = values.get("config", values)  # an archive's file has more than the config
        dtypes = values["model"]["dtype"], values.get("autoencoder", {}).get("dtype")
        return "bfloat16" if "bfloat16" in dtypes else "float32"
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return "float32"


def define_config(name: str = "config") -> flags.FlagHolder:
    """Define --config, or a flag of another name, that takes a config file. Its value is the config with all fields."""
    holder = config_flags.DEFINE_config_file(
        name,
        help_string=f"A config by name, such as digits_base; or a config file, or a run's config.json. Override a "
        f"field with --{name}.<field>=<value>.",
        lock_config=False,
        accept_new_attributes=True,  # `config.resolve` refuses unknown fields
    )
    flags.FLAGS[name].parser = _ConfigParser(name, lock_config=False)
    return holder


def config_arguments(name: str = "config") -> dict[str, Any]:
    """The flags that gave a config on the command line, for `command`; empty if there were none."""
    flag = flags.FLAGS[name]
    if flag.value is None:
        return {}
    fields = {}
    for field, value in config_flags.get_override_values(flag).items():
        fields[f"{name}.{field}"] = value.to_dict() if isinstance(value, ConfigDict) else value
    return {name: config_flags.get_config_filename(flag), **fields}


def define_some(name: str, known: Iterable[str], default: Iterable[str], help: str) -> flags.FlagHolder:
    """Define a flag that takes some of the known names, separated by commas."""
    known = list(known)
    holder = flags.DEFINE_list(name, list(default), help)

    def check(values: list[str]) -> bool:
        for value in values:
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


class _SamplersParser(flags.ListParser):
    """Names in `SAMPLERS`, or published names, separated by commas."""

    def parse(self, argument: str | list[str]) -> list[str]:
        """The names in `SAMPLERS`."""
        return [_SamplerParser(list(SAMPLERS)).parse(name) for name in super().parse(argument)]


def define_samplers() -> flags.FlagHolder:
    """Define --sampler, whose value is a list of names in `SAMPLERS`, or None for the config's."""
    return flags.DEFINE(
        _SamplersParser(),
        "sampler",
        None,
        "A sampler, or several separated by commas. Default: the config's; see `sampling.SAMPLERS`.",
        serializer=flags.ListSerializer(","),
    )


class _IntervalParser(flags.ArgumentParser):
    """Two numbers with a comma between them."""

    syntactic_help = "Two numbers, such as -4,3."

    def parse(self, argument: str | tuple[float, float]) -> tuple[float, float]:
        """The two numbers."""
        if not isinstance(argument, str):
            return argument
        interval = tuple(map(float, argument.split(",")))
        check_guidance_interval(interval)
        return interval


def define_guidance_interval() -> flags.FlagHolder:
    """Define --guidance_interval, whose value is two log-SNRs, or None for the config's."""
    return flags.DEFINE(
        _IntervalParser(),
        "guidance_interval",
        None,
        "The smallest and the largest log-SNR at which guidance acts. Default: the config's "
        "model.eval_guidance_interval.",
    )


class RunFlags(ProcessFlags):
    """The flags of a script that trains: --config, --workdir, and those that connect several processes."""

    def __init__(self):
        super().__init__()
        self._config = define_config()
        self._workdir = flags.DEFINE_string(
            "workdir", None, "The run's folder, created if it is missing.", required=True
        )
        self._change = flags.DEFINE_bool(
            "change",
            False,
            "Resume a run whose config differs. config_history.jsonl records the changes.",
        )
        self._print_config = flags.DEFINE_bool("print_config", False, "Print the resolved config as JSON and exit.")
        self._dry_run = flags.DEFINE_bool(
            "dry_run", False, "Check config, data, teacher and devices, print what the run would do, and exit."
        )
        self._wandb = flags.DEFINE_string("wandb_project", None, "Also send metrics to this Weights & Biases project.")
        flags.mark_flag_as_required("config")

    def config(self, *, distillation: bool) -> ConfigDict:
        """Return the resolved config, checked to have or lack a `distillation` section. --print_config exits here."""
        config = self._config.value
        if distillation != ("distillation" in config):
            has, name = ("no", "train") if distillation else ("a", "distill")
            raise InputError(f"This config has {has} config.distillation section. Use the command '{name}'.")
        config = cfg.resolve(config)
        if self._print_config.value:
            _print_and_exit(config.to_json(indent=2))
        return config

    @property
    def workdir(self) -> epath.Path:
        """The run's folder."""
        return as_path(self._workdir.value)

    def source(self, config: ConfigDict) -> Source:
        """Read the images that the config names."""
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


HELP = ("--help", "-help", "--helpshort", "-helpshort", "-h", "-?")
MISSING = re.compile(r"flag --(\w+)=None: .* must have a value other than None")
FIELD = re.compile(r"^(--?\w+\.)([^=]+)")
RUNG = re.compile(r"(?<=\.distillation\.stages)\.(\d+)(?=[.=])")


class _ConfigParser(ConfigFileFlagParser):
    def parse(self, path: str) -> ConfigDict:
        path = cfg.find(path)
        try:
            config = cfg.load(path)
        except Exception as error:  # a config file may raise anything
            where = traceback.extract_tb(error.__traceback__)[-1]
            raise ValueError(f"{type(error).__name__} in {where.filename}:{where.lineno}: {error}") from error
        if not isinstance(config, ConfigDict):
            raise ValueError(f"its get_config() must return a ConfigDict, not {config!r:.200}")
        self._reset_args_of_another_method(config)
        self._drop_args_of_another_dataset(config)
        cfg.add_missing(config)
        for num_steps in re.findall(r'\.distillation\.stages\["(\d+)"\]', " ".join(sys.argv)):
            if "distillation" in config and num_steps not in config.distillation.stages:
                config.distillation.stages[num_steps] = ConfigDict()
        for argument in sys.argv:
            if argument.startswith(f"--{self.name}.") and argument.endswith("=None"):
                _delete(config, argument.removeprefix(f"--{self.name}.").removesuffix("=None"))
        return config

    def _reset_args_of_another_method(self, config: ConfigDict) -> None:
        """If the command line sets another method than the file, drop the file's options of its own method."""
        method = self._override("distillation.method")
        if method is not None and "distillation" in config and method != config.distillation.get("method"):
            config.distillation.method = method
            config.distillation.args = ConfigDict()

    def _drop_args_of_another_dataset(self, config: ConfigDict) -> None:
        """If the command line sets another dataset than the file, drop the file's arguments that it does not take."""
        name = self._override("dataset.name")
        if name in DATASETS and "dataset" in config and name != config.dataset.get("name"):
            taken = {"randflip", *arguments_of(DATASETS[name])}
            args = config.dataset.get("args", {})
            for dropped in set(args) - taken:
                del args[dropped]

    def _override(self, field: str) -> str | None:
        """The value that the command line gives to a field; None if it gives none."""
        flag = f"--{self.name}.{field}="
        values = [argument.removeprefix(flag) for argument in sys.argv if argument.startswith(flag)]
        return values[-1] if values else None


def _spell_field(argument: str) -> str:
    """The argument, with the current name of its config field, spelled as ml_collections requires."""

    def current(match: re.Match) -> str:
        return match[1] + cfg.current_field(match[2])

    return RUNG.sub(r'["\1"]', FIELD.sub(current, argument))


def _delete(config: ConfigDict, field: str) -> None:
    """Delete a field, so that the command line can set it to None, which is not of the field's type."""
    *sections, name = config_path.split(field)
    for section in sections:
        config = config.get(section, {})
    if name in config:
        del config[name]


def run(main: Callable[[], None]) -> None:
    """Parse the flags, run a script's main function, and exit.

    The exit status is 0 for success, 2 for bad input, 1 for a run that cannot continue, and 128 + the signal's number
    after SIGINT or SIGTERM. Errors are one line on stderr. A bug has a traceback and the status 1.
    """

    def checked(argv: list[str]) -> None:
        _quieten_libraries()
        try:
            with exit_on_signals():
                main()
        except KeyboardInterrupt:  # a run raises it after saving
            sys.exit(128 + signal.SIGINT)
        except InputError as error:
            _fail(str(error), 2)
        except RunError as error:
            _fail(str(error), 1)
        except OSError as error:
            if error.errno not in MACHINE_ERRORS:
                _show_bug(error)
            _fail(f"{error}. Finished checkpoints are intact.", 1)
        except Exception as error:
            _show_bug(error)

    install_safe_output()
    sys.argv[1:] = map(_spell_field, sys.argv[1:])
    sys.path.append(os.getcwd())  # a config may name functions in the user's modules
    app.run(checked, flags_parser=_parse_flags)


def saved(what: str, *following: str) -> None:
    """Print what a script saved and where, and the commands to run next."""
    multihost.print_on_main("\n".join([f"Saved {what}.", *(f"Next: {command}" for command in following)]))


def command(name: str, **flags: Any) -> str:
    """The shell command that runs one of the package's commands with these flags."""
    arguments = [f"--{flag}={value}" for flag, value in flags.items()]
    return shlex.join(["diffusion_distillation", name, *arguments])


# The fields that a ladder's config shares with the config of its base model.
SHARED_FIELDS = (
    *("config.dataset.", "config.model.", "config.autoencoder."),
    *("config.train.microbatch_size.", "config.train.shard.", "config.train.parallel."),
)


def distill_commands(arguments: Mapping[str, Any], workdir: epath.Path) -> list[str]:
    """The command that distills the trained model, if its config X_base has a neighbor X_student or X_distill.

    It repeats the overrides of fields that both configs share. There is none if the neighbor does not accept them.

    Args:
      arguments: the flags of the model's config, from `config_arguments`.
      workdir: the folder of the model.
    """
    base = re.fullmatch(r"(.*)_base(\.py)?", arguments["config"])
    if base is None:
        return []
    overrides = {field: value for field, value in arguments.items() if f"{field}.".startswith(SHARED_FIELDS)}
    overrides["config.distillation.teacher_checkpoint_path"] = str(workdir)
    place = workdir if workdir.name not in ("", "..") else absolute(workdir)
    prefix = "" if place.name == "base" else f"{place.name}_"
    for kind, folder in (("student", "student"), ("distill", "ladder")):
        ladder = f"{base[1]}_{kind}{base[2] or ''}"
        try:
            config = cfg.load(ladder)
            config.update_from_flattened_dict(overrides, strip_prefix="config.")
            cfg.resolve(config)
        except (InputError, LookupError, TypeError, ValueError):
            continue
        return [command("distill", config=ladder, **overrides, workdir=place.parent / f"{prefix}{folder}")]
    return []


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
    """Silence what libraries print about errors that they also raise, such as for a damaged file."""
    logging.set_verbosity(logging.WARNING)
    root = logging.get_absl_logger().root
    for handler in [handler for handler in root.handlers if type(handler) is StreamHandler]:
        root.removeHandler(handler)  # added when orbax is imported; it would print every warning a second time
    logging.get_absl_handler().python_handler.stream = sys.stderr  # which `install_safe_output` has replaced
    logging.get_absl_handler().setFormatter(_LevelFormatter())
    logging.get_absl_handler().addFilter(lambda record: not ("orbax" in record.pathname or record.name == "asyncio"))
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry.*MemoryError", UserWarning)
    sys.unraisablehook = _ignore_libraries


class _LevelFormatter(Formatter):
    """Log lines as this package's errors look: 'warning: ...'."""

    def format(self, record: LogRecord) -> str:
        """The level and the message of a record."""
        return f"{record.levelname.lower()}: {super().format(record)}"


def _ignore_libraries(unraisable: Any) -> None:
    """Show an exception that could not be raised, unless it comes from orbax or asyncio."""
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(unraisable.exc_traceback)]
    if not any("orbax" in file or "asyncio" in file for file in files):
        sys.__unraisablehook__(unraisable)


def _parse_flags(argv: list[str]) -> list[str]:
    """Parse the flags. For --help, print the help and exit. For a bad flag, print an error and exit."""
    help_asked = any(argument in HELP for argument in argv)
    problem = None
    try:
        argv = flags.FLAGS([argument for argument in argv if argument not in HELP])
        if len(argv) > 1:
            problem = f"Unexpected argument {argv[1]!r}: write flags as --name=value."
    except KeyError as error:  # a config field in a section that does not exist
        problem = f"Unknown field of --config: {error.args[0]}"
    except (flags.Error, LookupError, TypeError, ValueError) as error:
        missing = MISSING.match(str(error))
        problem = f"--{missing[1]} is missing." if missing else str(error)
        if missing and help_asked:  # required flags are checked last, so nothing else is wrong
            problem = None
    if problem is not None:
        sentence = " ".join(problem.split())
        print(f"error: {sentence}{'' if sentence[-1] in '.?' else '.'} --help lists all flags.", file=sys.stderr)
        sys.exit(2)
    if help_asked:
        _print_and_exit(_help())
    return argv


def _print_and_exit(text: str) -> NoReturn:
    """Print a text on stdout and exit with the status 0."""
    print(text, flush=True)
    sys.exit(0)


def _help() -> str:
    """The text of --help: what the script does, its flags, and the fields of its config with their values."""
    for flag in flags.FLAGS.get_flags_for_module(__name__):
        if "." not in flag.name:  # a name with a dot is a config field
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    listed = flags.FLAGS.main_module_help().replace(f"{sys.argv[0]}:", "Flags:", 1)
    parts = [sys.modules["__main__"].__doc__ or "", listed]
    for name in flags.FLAGS:
        if isinstance(flags.FLAGS[name].parser, _ConfigParser):
            fields = "\n".join(f"  {line}" for line in cfg.listing(name, flags.FLAGS[name].value))
            values = "" if flags.FLAGS[name].value else f" with their defaults; add --{name}=... for its values"
            where = "docs/reference/fields.md of the repository explains them, and None unsets a field"
            parts.append(f"Fields of --{name}{values} ({where}):\n{fields}")
    return "\n\n".join(part.strip("\n") for part in parts)
