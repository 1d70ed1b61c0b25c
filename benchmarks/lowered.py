"""What Halide's features don't say: how many points a schedule really stores, counted in its lowered code, and whether that is what the model misses.

    python benchmarks/lowered.py
    python benchmarks/lowered.py --programs 20

Adams2019 works its features out for one representative tile. Bounds inference then asks for boxes that may be larger, for whole vectors, for
what is recomputed where tiles overlap. Here every validation schedule of the shipped random programs is proposed again, lowered (neither
compiled nor run: a third of a second each), and what it stores is compared with what its features say it computes, beside the error of the
model of run_path. Nothing is learnt from this yet. Writes benchmarks/results/lowered.md and .json; works on validation rows alone.
"""

import os
import re
import sys
import tarfile
import tempfile
from pathlib import Path

import halide as hl
import numpy as np
import orjson
import pandas as pd
import torch
from joblib import Parallel, delayed
from pydantic import Field
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import GroupKFold, cross_val_predict
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import timing  # noqa: E402

import data_utils  # noqa: E402
import halide_utils  # noqa: E402
import train_utils  # noqa: E402
from candidate import silence  # noqa: E402
from config import Config, UserError, load_config, run_script  # noqa: E402
from features import SCHEDULE_FEATURES  # noqa: E402
from halide_utils import ProgramSpec, Proposal  # noqa: E402

FOLDS = 5
CLASSES = [  # of the predicted over the measured logarithm
    ("more than e times too fast", -np.inf, -1), ("sqrt(e) to e times too fast", -1, -0.5), ("within a factor of sqrt(e)", -0.5, 0.5),
    ("more than sqrt(e) times too slow", 0.5, np.inf),
]  # fmt: skip


class LoweredConfig(Config):
    programs: int = Field(0, ge=0, description="how many of the validation programs to look at; 0: all")


# Lowered code, as text, is translated to Python line by line. Names are looked up in one dictionary; an expression that has no value, because
# it depends on what is in a buffer, is None.

NAME = re.compile(r"(?<![\w.$\"])[A-Za-z_][\w.$]*")
CAST = re.compile(r"\((?:u?int|float|bfloat)\d+(?:x\d+)?\)|\b(?:u?int|float|bfloat)\d+(?=\()")
ELSEWHERE = re.compile("load_typed_struct_member|_halide_buffer_get|make_struct")  # a task's copies, and what is known of buffers
KEPT = {"min", "max", "select", "and", "or", "not", "lambda", "let"}  # names that Python, or the scope of stored_points, knows


def arguments(text, start):
    """The arguments, separated by commas, of what was opened just before text[start], and where it is closed."""
    found, depth, begin = [], 0, start
    for i in range(start, len(text)):
        if text[i] in "([":
            depth += 1
        elif text[i] in ")]":
            if not depth:
                return [*found, text[begin:i].strip()], i
            depth -= 1
        elif text[i] == "," and not depth:
            found.append(text[begin:i].strip())
            begin = i + 1
    return [*found, text[begin:].strip()], len(text)


def lanes(text):
    """Lanes of the vector that an expression is; 1 for a scalar."""
    most = 1
    for found in re.finditer(r"\b(?:ramp|x(\d+))\(", text):
        inner = arguments(text, found.end())[0]
        most = max(most, int(found[1] or inner[2]) * lanes(inner[0]))
    return most


def without_lets(text):
    """`let a = x in y`, wherever it stands, as a call: let("a", x, lambda: y)."""
    while lets := list(re.finditer(r"(?<![\w.$])let ([\w.$]+) = ", text)):
        last = lets[-1]  # holds no other
        value, rest = text[last.end() :].split(" in ", 1)
        body = arguments(rest, 0)[0][0]
        text = f'{text[: last.start()]}let("{last[1]}", {value}, lambda: {body}){rest[len(body) :]}'
    return text


def python(expression):
    """A scalar expression of the lowered code in Python: "None" where it can't be one."""
    text = CAST.sub("", without_lets(expression))
    text = re.sub(r"!(?!=)", " not ", text.replace("&&", " and ").replace("||", " or ").replace("/", "//"))
    text = NAME.sub(lambda name: name[0] if name[0] in KEPT else f"v[{name[0]!r}]", text)
    try:
        compile(text.strip(), "lowered", "eval")
    except SyntaxError:
        return "None"
    return text.strip()


def translate(lowered):
    """A Python program that calls the methods of a Counter as the lowered code would run."""
    lines, depth = [], 0

    def emit(text):
        lines.append("    " * depth + text)

    for line in map(str.strip, lowered.splitlines()):
        if line.startswith("}"):
            depth -= 1
        if found := re.match(r"\w+ func (\S+) \((.*)\) \{", line):
            loop_name = found[2].split(", ")[1] if found[2].startswith("__user_context") else ""
            emit(f"@task({found[1]!r}, {loop_name!r})")
            emit("def _():")
        elif found := re.match(r"for \((\S+), (.*)\) \{", line):
            (start, extent), _ = arguments(found[2], 0)
            emit(f"for _ in loop({found[1]!r}, lambda: {python(start)}, lambda: {python(extent)}):")
        elif found := re.match(r"(?:\} else )?if \((.*)\) \{", line):
            emit(f"{'elif' if line.startswith('}') else 'if'} holds(lambda: {python(found[1])}):")
        elif line == "} else {":
            emit("else:")
        elif line.endswith("{"):
            emit("if True:")
        elif found := re.match(r"let \S+ = halide_do_par_for\(.*?::([\w$.]+), ", line):
            start, extent, *_ = arguments(line, found.end())[0]
            emit(f"run_task({found[1]!r}, lambda: {python(start)}, lambda: {python(extent)})")
        elif found := re.match(r"let (\S+) = (.*)", line):
            if not ELSEWHERE.search(found[2]):
                emit(f"assign({found[1]!r}, lambda: {python(found[2])})")
        elif found := re.match(r"([A-Za-z_][\w.$]*)\[", line):
            index, end = arguments(line, found.end())
            if " = " in line[end:]:
                emit(f"store({found[1]!r}, {lanes(index[0])})")
        if line.endswith("{"):
            depth += 1
            emit("pass")
    return "\n".join(lines)


class Counter:
    """Runs a translation. A loop runs its middle iteration, which stands for all but the last, and the last."""

    def __init__(self, values):
        self.v, self.points, self.weight, self.unknown, self.tasks = dict(values), {}, 1, 0, {}

    def value(self, function):
        try:
            return function()
        except (KeyError, TypeError, ZeroDivisionError):
            return None

    def assign(self, name, function):
        self.v[name] = self.value(function)

    def let(self, name, value, function):
        self.v[name] = value
        return function()

    def holds(self, function):
        known = self.value(function)
        return known is None or bool(known)

    def loop(self, name, start, extent):
        first, n, outer = self.value(start) or 0, self.value(extent), self.weight
        if n is None:
            self.unknown += 1
            n = 1
        for index, weight in [((n - 1) // 2, n - 1), (n - 1, 1)] if n > 1 else [(0, 1)] if n == 1 else []:
            self.v[name], self.weight = first + index, outer * weight
            yield
        self.weight = outer

    def task(self, name, loop_name):
        """Decorates the body of a parallel loop over `loop_name`."""
        return lambda body: self.tasks.__setitem__(name, (loop_name, body))

    def run_task(self, name, start, extent):
        loop_name, body = self.tasks[name]
        for _ in self.loop(loop_name, start, extent):
            body()

    def store(self, name, n_lanes):
        self.points[name] = self.points.get(name, 0) + self.weight * n_lanes


def stored_points(pipeline):
    """({Func: points stored, those of vectors that are not asked for included}, how many loops had an extent that could not be told).

    pipeline : scheduled, with estimates for all inputs and outputs
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "lowered.stmt")
        pipeline.compile_to_lowered_stmt(str(path), pipeline.infer_arguments(), hl.StmtOutputFormat.Text, hl.get_host_target())
        lowered = path.read_text()
    name, names = re.search(r"^external\S* func (\S+) \((.*)\) \{", lowered, re.M).groups()
    values = {}
    inputs, outputs = halide_utils.make_buffers(pipeline, 0)
    for argument, given in zip(names.split(", "), [*inputs, *outputs]):
        if isinstance(given, hl.Buffer):
            for i, dimension in enumerate(map(given.dim, range(given.dimensions()))):
                values |= {f"{argument}.min.{i}": dimension.min(), f"{argument}.extent.{i}": dimension.extent(), f"{argument}.stride.{i}": dimension.stride()}
        else:
            values[argument] = given
    counter = Counter(values)
    methods = {method: getattr(counter, method) for method in ("assign", "let", "holds", "loop", "task", "run_task", "store")}
    scope = {"v": counter.v, "select": lambda condition, a, b: a if condition else b, **methods}
    exec(compile(translate(lowered), name, "exec"), scope)
    counter.tasks[name][1]()
    return counter.points, counter.unknown


# The validation rows


def lower_program(archive, folder, keys):
    """{key: (ratios, total)} of some schedules of one program in an archive: points stored over points that its features say.

    ratios : (T,), of each stage's Func, 1 where it is inlined; total : of all Funcs. One with a loop that can't be told is left out.
    """
    silence()
    with tarfile.open(archive) as tar:
        record = orjson.loads(tar.extractfile(f"{folder}/program.json").read())
        source = orjson.loads(tar.extractfile(f"{folder.split('/')[0]}/collection.json").read())["source"]
        if "random_programs" not in source:
            return {}
        samples = {key: tar.extractfile(f"{folder}/{key.zfill(3)}.sample").read() for key in keys}
    spec, found = ProgramSpec(record["name"], record["seed"], max_stages=source["random_programs"]["max_stages"]), {}
    funcs = pd.Series(without_number(stage.split(".update(")[0]) for stage in record["stages"])
    for key, sample in samples.items():
        pipeline = spec.build()
        featurization, _ = Proposal.from_record(record["candidates"][key]).apply(pipeline)
        points, unknown = stored_points(pipeline)
        if unknown or not sample.startswith(featurization):
            continue
        s = dict(zip(SCHEDULE_FEATURES, np.frombuffer(featurization, np.float32).reshape(len(funcs), -1).T.astype(float)))
        said = np.maximum(s["points_computed_total"], s["num_productions"] * s["points_computed_per_production"]) * (s["inlined_calls"] <= 0)
        said = pd.Series(said).groupby(funcs).sum()
        stored = pd.Series(points).groupby(without_number).sum().reindex(said.index).where(said > 0)
        found[key] = (stored / said).fillna(1).loc[funcs].to_numpy(), stored.sum() / said[stored.notna()].sum()
    return found


def without_number(name):
    """A Func's name less what Halide appends in a process that has another of this name."""
    return re.sub(r"\$\d+$", "", name)


def stage_shares(model, sequences, device):
    """What the model takes each stage's share of the time to be, (T,) of each row."""
    shares = []
    with torch.no_grad():
        for start in range(0, len(sequences), train_utils.SCORING_BATCH):
            batch = sequences.batch(np.arange(start, min(start + train_utils.SCORING_BATCH, len(sequences)))).to(device)
            costs = model.stage_costs(batch.features, batch.lengths).softmax(2).mean(0).cpu().numpy()
            shares += [row[:n] for row, n in zip(costs, batch.lengths.tolist())]
    return shares


def main():
    config = load_config(LoweredConfig)
    device = train_utils.pick_device(config)
    checkpoint, meta = Path(config.run_path) / "best.safetensors", data_utils.read_meta(config.data_path)
    model, trained = train_utils.load_model(checkpoint, device)
    train, sequences = (train_utils.Sequences(config.data_path, meta, split) for split in ("train", "val"))
    if trained["data"] != train_utils.fingerprint(train, sequences):
        raise UserError(f"{checkpoint}: was trained on other schedules than those of {config.data_path}; run train_model.py again")
    rows = pd.read_csv(Path(config.data_path) / "schedules.csv").query("split == 'val'").reset_index(drop=True)
    rows["residual"] = train_utils.predict(model, sequences, device) - sequences.log_runtime
    rows["share"] = stage_shares(model, sequences, device)
    rows[["archive", "folder", "key"]] = rows.file.str.extract(r"^([^/]+)/(.+)/0*(\d+)\.sample$").to_numpy()
    groups = [group for group in rows.groupby(["archive", "folder"]) if Path(config.raw_path, group[0][0]).is_file()][: config.programs or None]
    if len(groups) < FOLDS:
        raise UserError(f"{config.data_path}: fewer than {FOLDS} programs with validation schedules lie in archives under {config.raw_path}")
    tasks = (delayed(lower_program)(Path(config.raw_path) / archive, folder, list(group.key)) for (archive, folder), group in groups)
    results = Parallel(n_jobs=os.cpu_count(), return_as="generator")(tasks)
    found = {place: result for (place, _), result in zip(groups, tqdm(results, total=len(groups), desc="lowered", unit="program"))}
    rows["found"] = [found.get((archive, folder), {}).get(key) for archive, folder, key in zip(rows.archive, rows.folder, rows.key)]
    n_rows = sum(len(group) for _, group in groups)
    rows = rows[rows.found.notna()].reset_index(drop=True)
    if rows.program.nunique() < FOLDS:
        raise UserError(f"{config.raw_path}: fewer than {FOLDS} of the validation programs are random ones that could be lowered")
    rows["all"] = [np.log(total) for _, total in rows.found]
    rows["greatest"] = [np.log(ratios.max()) for ratios, _ in rows.found]
    rows["weighted"] = [np.log(share @ ratios) for share, (ratios, _) in zip(rows.share, rows.found)]
    ratios, table = ["all", "greatest", "weighted"], []
    for name, low, high in CLASSES:
        part = rows[(rows.residual > low) & (rows.residual <= high)]
        if len(part):
            error = (part.residual**2).sum() / (rows.residual**2).sum()
            table.append([name, len(part), f"{error:.2f}", *(timing.spread(np.exp(part[column])) for column in ratios)])
    regressor = HistGradientBoostingRegressor(max_iter=50, learning_rate=0.05, min_samples_leaf=20, random_state=0)
    told = cross_val_predict(regressor, rows[ratios].to_numpy(), rows.residual, groups=rows.program, cv=GroupKFold(FOLDS))
    facts = {"left_out": n_rows - len(rows), "mse_log": float((rows.residual**2).mean()), "mse_log_told": float(((rows.residual - told) ** 2).mean())}
    header = ["predicted", "schedules", "share of squared error", "stored over said, all Funcs", "the Func it is greatest in", "weighted by predicted cost"]
    timing.write("lowered", header, table, facts)
    print(f"{facts['left_out']} of {n_rows} schedules are left out; mse_log {facts['mse_log']:.3f}; {facts['mse_log_told']:.3f} less what boosted trees, fitted to other programs, tell of the error from the three ratios")


if __name__ == "__main__":
    run_script(main)
