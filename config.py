"""The settings: config.yaml, checked and typed, and the flags and --help that every script makes of them.

    config = load_config(Config)        # in a script's main(): config.yaml, then --config FILE, then the flags

A mistake of the user's ends in one line on standard error and exit code 2: see `UserError` and `run_script`.
"""

import argparse
import difflib
import itertools
import math
import os
import re
import select
import sys
import tempfile
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, PrivateAttr, ValidationError, model_validator
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict, SettingsError

SHIPPED = Path(__file__).resolve().parent / "config.yaml"
PATH_KEYS = ("raw_path", "init_from")
EPILOG = """Every key of config.yaml is a flag of every script, so that one set of flags serves them all. A flag that a script does not need
changes nothing there: --epochs for evaluate_model.py, --shard_size for train_model.py. raw_path, holdout, max_runtime_ms and
the keys of the split are settings of generate_dataset.py. A script that reads data_path takes them only where they agree with it.
Likewise a script that reads a checkpoint takes the keys of its network, drop_features and init_from only where they agree."""


class UserError(Exception):
    """Something the user can mend: which file or key, what is wrong, what to do. One line; exit code 2."""


class Config(BaseSettings):
    """Every key of config.yaml, which holds the defaults and, in its comments, what each key means: they are the --help."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    _given: frozenset = PrivateAttr(frozenset())  # keys given as flags, rather than by a yaml file

    raw_path: str = Field(min_length=1)
    data_path: str = Field(min_length=1)
    run_path: str = Field(min_length=1)

    split_by: Literal["program", "schedule"]
    val_fraction: float = Field(ge=0, lt=1)
    test_fraction: float = Field(ge=0, lt=1)
    folds: int = Field(ge=0)
    fold: int = Field(ge=0)
    holdout: str
    max_runtime_ms: float = Field(gt=0)
    shard_size: int = Field(ge=1)

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    schedules_per_group: int = Field(ge=1)
    learning_rate: float = Field(gt=0, lt=10)
    warmup_fraction: float = Field(gt=0, lt=1)
    weight_decay: float = Field(ge=0)
    gradient_clip: float = Field(gt=0)
    centred_loss_weight: float = Field(ge=0)
    ranking_loss_weight: float = Field(ge=0)
    lowered_dropout: float = Field(ge=0, lt=1)
    schedule_dropout: float = Field(ge=0, lt=1)
    drop_features: str
    init_from: str

    members: int = Field(ge=1)
    embed_size: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    lstm_layers: int = Field(ge=1)
    dropout: float = Field(ge=0, lt=1)

    interval: float = Field(gt=0, lt=1)
    bootstrap_samples: int = Field(ge=0)

    seed: int = Field(ge=0, lt=2**31)
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["float32", "bfloat16"]
    num_threads: int = Field(ge=0)
    backend: Literal["loky", "dask"]
    scheduler_address: str
    resume: bool

    @model_validator(mode="after")
    def _check_split(self):
        if self.folds == 1:
            raise ValueError("folds is 1: give 0 for a single split, or 2 and more")
        if self.folds == 0 and self.fold:
            raise ValueError(f"fold is {self.fold} but folds is 0: give both")
        if self.folds and self.fold >= self.folds:
            raise ValueError(f"fold is {self.fold}: with folds {self.folds} it goes from 0 to {self.folds - 1}")
        if (self.backend == "dask") != bool(self.scheduler_address):
            raise ValueError(
                f"backend is {self.backend} and scheduler_address is {self.scheduler_address!r}: dask needs an address, loky takes none"
            )
        if self.folds == 0 and self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction leaves nothing to train on: make their sum less than 1")
        return self

    @property
    def holdout_names(self):
        return {name.strip() for name in self.holdout.split(",") if name.strip()}

    def agreeing_with(self, recorded, made_with, advice):
        """These settings with the values that are `recorded` {key: value} of what a script reads: processed data, or a checkpoint.

        Values of config.yaml and --config FILE give way, since one file serves all scripts. Raises UserError for a flag that contradicts
        what is recorded: in the words of `made_with`, say "data/processed was made with", and of `advice`.
        """
        for key in sorted(self._given & recorded.keys()):
            value = getattr(self, key)
            if _resolved(key, value) != _resolved(key, recorded[key]):
                raise UserError(f"--{key} {value}: {made_with} {recorded[key]!r}; {advice}, or leave the flag out")
        return self.model_copy(update=recorded)

    def was_given(self, key):
        """Whether `key` was given as a flag."""
        return key in self._given

    @classmethod
    def settings_customise_sources(cls, settings_cls, init_settings, **_):
        return (init_settings,)  # no environment variables: a stray SEED in a shell must not change a result


def _resolved(key, value):
    """A value to compare: paths may be written in several ways."""
    return sorted(str(Path(path.strip()).resolve()) for path in value.split(",")) if value and key in PATH_KEYS else value


class _Parser(argparse.ArgumentParser):
    """argparse that raises instead of printing its usage, and takes no abbreviated flags: a misspelt key is an error."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def error(self, message):
        raise UserError(f"{message} (--help lists all flags)")


def load_config(cls=Config, argv=None):
    """The settings of one run, from config.yaml, `--config FILE` and the flags, later ones winning.

    Parameters
    ----------
    cls : Config, or a subclass with a script's own arguments (which no yaml file may hold)
    argv : list of str, the command line without the script's name; None for this process's own

    Raises UserError, in one line naming the key, for an unknown key, a wrong type or a value out of range.
    """
    main_doc = (sys.modules["__main__"].__doc__ or "").strip()
    first = _Parser(add_help=False)
    first.add_argument("--config")
    known, rest = first.parse_known_args(sys.argv[1:] if argv is None else argv)
    shipped = _read_yaml(SHIPPED)
    values = {**shipped, **(_read_yaml(known.config) if known.config else {})}
    where = known.config or SHIPPED.name
    for key in values.keys() - Config.model_fields.keys():
        raise UserError(f"{where}: unknown key {key!r}{_nearest(key, Config)}")

    comments = key_comments()

    class Help(argparse.RawDescriptionHelpFormatter):
        def _get_help_string(self, action):
            if action.dest in comments:
                return f"{comments[action.dest]} (default: {shipped[action.dest]!r})".replace("%", "%%")
            return action.help

    parser = _Parser(description=main_doc, epilog=EPILOG, formatter_class=Help)
    parser.add_argument("--config", metavar="FILE", help="a yaml file with other values; keys it leaves out come from config.yaml")
    _require_known(rest, cls)
    try:
        source = CliSettingsSource(
            cls, cli_parse_args=rest, root_parser=parser, cli_exit_on_error=False, cli_enforce_required=False,
            parse_args_method=_Parser.parse_args, formatter_class=Help,
        )  # fmt: skip
        flags = {k: v for k, v in source().items()}
        config = cls(**{**values, **flags})
        config._given = frozenset(flags)
        return config
    except ValidationError as error:
        raise UserError(_one_line(error, flags, where)) from None
    except SettingsError as error:
        raise UserError(" ".join(str(error).split())) from None


def key_comments():
    """{key: its comment} of every key of config.yaml that has one."""
    return dict(re.findall(r"^(\w+):[^#]*?#\s*(.+?)\s*$", SHIPPED.read_text(), re.MULTILINE))


def _require_known(arguments, cls):
    for word in arguments:
        key = word[2:].split("=")[0]
        if word.startswith("--") and key not in cls.model_fields and key not in ("help", "config"):
            raise UserError(f"--{key}: no such flag{_nearest(key, cls)} (--help lists all flags)")


def _nearest(key, cls):
    close = difflib.get_close_matches(str(key), cls.model_fields, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _read_yaml(path):
    try:
        values = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}); give --config a yaml file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid yaml: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: should hold lines of the form 'key: value'")
    return values


def _one_line(error, flags, where):
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return message
    key = str(first["loc"][0])
    if first["type"] == "missing":
        return f"{key}: this argument is needed (--help tells what it means)"
    return f"{'--' + key if key in flags else f'{where}: {key}'}: {message}, not {first['input']!r}"


def usable_cores(root=Path("/")):
    """Processor cores that this process may use, by its affinity mask (taskset) and by the limits of its cgroup (a container), v1 or v2.

    root : where /proc and /sys are; tests give a folder of their own. At least 1; a limit of 1.5 cores counts as 2.
    """
    limits = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    try:
        groups = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
    except OSError:
        groups = []  # not Linux
    for _, controllers, group in groups:
        if controllers and "cpu" not in controllers.split(","):
            continue
        hierarchy = root / "sys/fs/cgroup" / controllers
        own = hierarchy / group.lstrip("/")
        for folder in (own, *own.parents):  # a group's limit holds for those inside it, too
            if folder == hierarchy.parent:
                break
            quota, period = _cgroup_quota(folder)
            if quota > 0 and period > 0:
                limits.append(math.ceil(quota / period))
    return max(1, min(limits))


def _cgroup_quota(folder):
    """(microseconds of processor time, a period of so many microseconds) of a control group; (0, 0) without a limit."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / name).read_text() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
        return int(quota), int(period)
    except (OSError, ValueError):
        return 0, 0  # no such file, or `max`


def make_folder(path, key):
    """The folder `path` of the setting `key`, made if it is missing, as a Path. Raises UserError where it can't be written to."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise UserError(f"{path}: this folder can't be written to ({error.strerror}); give another --{key}") from None
    return Path(path)


def replace_file(path, data):
    """Write to another name and move into place: whoever kills us, the file is whole."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


def set_aside(folder, patterns):
    """Move what matches `patterns` in `folder` to a new folder previous-N inside it; returns that, or None where nothing matches."""
    found = [path for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file()]
    if not found:
        return None
    for number in itertools.count(1):
        target = folder / f"previous-{number}"
        if not target.exists():
            break
    target.mkdir()
    for path in found:
        path.rename(target / path.name)
    return target


def run_script(main):
    """Run a script's `main()`.

    A user's mistake becomes one line on standard error and exit code 2; of several processes that torchrun started, one prints it.
    Where the reader of the output has gone (`| head`), the script ends without a word, with exit code 1.
    """
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(1)
    except BrokenPipeError:
        if not any(_reader_is_gone(stream) for stream in (1, 2)):
            raise  # some other pipe
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(nowhere, stream)  # so that what Python still holds back does not fail again as it ends
        sys.exit(1)


def _reader_is_gone(stream):
    """Whether the file descriptor `stream` is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(stream, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
