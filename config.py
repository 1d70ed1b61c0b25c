"""The settings: config.yaml, checked and typed, and the flags and --help that every script makes of them.

    config = load_config(Config)        # in a script's main(): config.yaml, then --config FILE, then the flags

A mistake of the user's ends in one line on standard error and exit code 2: see `UserError` and `run_script`.
"""

import argparse
import difflib
import math
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict, SettingsError

SHIPPED = Path(__file__).resolve().parent / "config.yaml"


class UserError(Exception):
    """Something the user can mend: which file or key, what is wrong, what to do. One line; exit code 2."""


class Config(BaseSettings):
    """Every key of config.yaml, which holds all the defaults. The descriptions are the --help."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    raw_path: str = Field(min_length=1, description="measured schedules: a folder, a file, or several separated by commas")
    data_path: str = Field(min_length=1, description="processed shards: generate_dataset.py writes them, train_model.py reads them")
    run_path: str = Field(min_length=1, description="checkpoints, logs, plots and report of one training run")

    split_by: Literal["program", "schedule"] = Field(description="what a split keeps together")
    val_fraction: float = Field(ge=0, lt=1, description="share of the programs (or schedules) for validation")
    test_fraction: float = Field(ge=0, lt=1, description="share of the programs (or schedules) for the report")
    folds: int = Field(ge=0, description="0: one split by a stable hash; n: cross-validation in n folds")
    fold: int = Field(ge=0, description="which fold is the test split, from 0 to folds - 1")
    holdout: str = Field(description="collections never trained on and reported apart, separated by commas")
    max_runtime_ms: float = Field(gt=0, description="a longer runtime is dropped as implausible")
    shard_size: int = Field(ge=1, description="schedules a shard")

    epochs: int = Field(ge=1, description="passes over the training split")
    batch_size: int = Field(ge=1, description="schedules a step")
    schedules_per_group: int = Field(ge=1, description="schedules of one program that share a batch")
    learning_rate: float = Field(gt=0, lt=10, description="peak learning rate of the one-cycle schedule")
    warmup_fraction: float = Field(gt=0, lt=1, description="share of the steps in which the rate rises")
    weight_decay: float = Field(ge=0, description="weight decay of AdamW")
    gradient_clip: float = Field(gt=0, description="largest norm of the gradient")
    centred_loss_weight: float = Field(ge=0, description="weight of the loss on residuals centred per program")
    ranking_loss_weight: float = Field(ge=0, description="weight of the pairwise ranking loss within a program")

    lowered_dropout: float = Field(ge=0, lt=1, description="share of the programs whose counts in the lowered code are hidden in an epoch")
    drop_features: str = Field(description="features the model is not shown, as patterns separated by commas, say log_cost_*; empty: none")
    init_from: str = Field(description="checkpoint to start from instead of random weights; empty: none")

    members: int = Field(ge=1, description="LSTMs trained side by side and averaged")
    embed_size: int = Field(ge=1, description="width of a stage's embedding")
    hidden_size: int = Field(ge=1, description="width of the LSTM in each direction")
    lstm_layers: int = Field(ge=1, description="layers of the LSTM")
    dropout: float = Field(ge=0, lt=1, description="dropout probability")

    interval: float = Field(gt=0, lt=1, description="share of runtimes that should lie within the predicted interval")
    bootstrap_samples: int = Field(ge=0, description="resamplings of the test programs for confidence intervals; 0: none")

    seed: int = Field(ge=0, lt=2**31, description="of every random choice")
    device: Literal["auto", "cpu", "cuda"] = Field(description="where the model runs")
    precision: Literal["float32", "bfloat16"] = Field(
        description="what the LSTMs compute in; bfloat16 where the device has instructions for it"
    )
    num_threads: int = Field(ge=0, description="processor cores to use; 0: all")
    backend: Literal["loky", "dask"] = Field(description="where tasks fan out: processes on this machine, or a Dask cluster")
    scheduler_address: str = Field(description="of the Dask cluster, say tcp://host:8786; only with backend dask")
    resume: bool = Field(description="go on from the last checkpoint in run_path")

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

    @classmethod
    def settings_customise_sources(cls, settings_cls, init_settings, **_):
        return (init_settings,)  # no environment variables: a stray SEED in a shell must not change a result


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

    class Help(argparse.RawDescriptionHelpFormatter):
        def _get_help_string(self, action):
            return re.sub(r"\s*\(required\)", f" (default: {shipped.get(action.dest)})", action.help or "")

    parser = _Parser(description=main_doc, formatter_class=Help)
    parser.add_argument("--config", metavar="FILE", help="a yaml file with other values; keys it leaves out come from config.yaml")
    _require_known(rest, cls)
    try:
        source = CliSettingsSource(
            cls, cli_parse_args=rest, root_parser=parser, cli_exit_on_error=False, cli_enforce_required=False,
            parse_args_method=_Parser.parse_args, formatter_class=Help,
        )  # fmt: skip
        flags = {k: v for k, v in source().items()}
        return cls(**{**values, **flags})
    except ValidationError as error:
        raise UserError(_one_line(error, flags, where)) from None
    except SettingsError as error:
        raise UserError(" ".join(str(error).split())) from None


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
    """Processor cores that this process may use: at most its affinity mask (taskset) and its cgroup's limit (a container's), version 1 or 2.

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


def run_script(main):
    """Run a script's `main()`; a user's mistake becomes one line on standard error and exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(1)
