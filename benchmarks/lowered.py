"""What the schedules of packed collections do in their lowered code: data/raw/ARCHIVE.lowered.json.xz.

    python benchmarks/lowered.py
    python benchmarks/lowered.py --raw_path data/raw/random_009.tar.xz

For archives that don't tell: proposes every schedule again (random programs from their numbers, applications from pipelines/), counts in
what Halide lowers it to (lowering.py; neither compiled nor run: about a third of a second each), and writes it beside the archive:
{program: {schedule: {kind: [count of each stage]}}}. Collections measured since carry the same beside each dump. A schedule that comes
out otherwise today is left out, and so is one whose lowered code can't be counted; an archive that has its file already is left alone.
"""

import lzma
import os
import sys
import tarfile
from pathlib import Path

import halide as hl
import orjson
from joblib import Parallel, delayed
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import data_utils  # noqa: E402
import halide_utils  # noqa: E402
import lowering  # noqa: E402
from candidate import silence  # noqa: E402
from config import UserError, load_config, replace_file, run_script  # noqa: E402
from halide_utils import ProgramSpec, Proposal  # noqa: E402


def program_spec(record, source):
    """The ProgramSpec of a program.json, of a collection with this `source`; None where pipelines/ has no such application any more."""
    if "random_programs" in source:
        return ProgramSpec(record["name"], record["seed"], max_stages=source["random_programs"]["max_stages"])
    files = (file for file in sorted((ROOT / "pipelines").glob("*.py")) if file.stem != "random_programs")
    return next((spec for file in files for spec in halide_utils.programs_in(file) if spec.name == record["name"]), None)


def count_program(archive, folder):
    """({schedule: lowering.as_dict of its counts}, how many schedules are left out) of one program in an archive."""
    silence()
    with tarfile.open(archive) as tar:
        record = orjson.loads(tar.extractfile(f"{folder}/program.json").read())
        source = orjson.loads(tar.extractfile(f"{folder.split('/')[0]}/collection.json").read())["source"]
        names = [name for name in tar.getnames() if Path(name).parent == Path(folder) and name.endswith(".sample")]
        samples = {Path(name).stem: tar.extractfile(name).read() for name in names}
    spec, found = program_spec(record, source), {}
    schedules = [name for name in samples if name == data_utils.schedule_of(name)]
    for name in schedules if spec else []:
        try:
            pipeline = spec.build()
            featurization, _ = Proposal.from_record(record["candidates"][str(int(name))]).apply(pipeline)
            counts = lowering.count_lowered(pipeline) if samples[name].startswith(featurization) else None
        except (hl.HalideError, RuntimeError):
            counts = None
        if counts is not None:
            found[name] = lowering.as_dict(counts)
    return found, len(schedules) - len(found)


def main():
    config = load_config()
    archives = [folder / name for _, folder, names in data_utils.iter_folders(config.raw_path) for name in names if name.endswith(".tar.xz")]
    if not archives:
        raise UserError(f"{config.raw_path}: no packed collection (.tar.xz) in it")
    for archive in archives:
        path = Path(data_utils.without_suffixes(str(archive)) + data_utils.LISTED_SUFFIX)
        try:
            with tarfile.open(archive) as tar:
                names = tar.getnames()
        except data_utils.ARCHIVE_ERRORS as error:
            raise UserError(f"{archive}: can't be read ({error}); mend it, or move it away") from None
        folders = sorted(name.rpartition("/")[0] for name in names if name.endswith("/program.json"))
        if path.exists() or not folders or any(name.endswith(data_utils.LOWERED_SUFFIX) for name in names):
            continue
        results = Parallel(os.cpu_count(), return_as="generator")(delayed(count_program)(archive, folder) for folder in folders)
        found, left_out = {}, 0
        for folder, (counts, n) in zip(folders, tqdm(results, archive.name, len(folders), unit="program")):
            found[folder.rpartition("/")[2]] = counts
            left_out += n
        replace_file(path, lzma.compress(orjson.dumps(found), preset=9))
        print(f"{path}: {sum(map(len, found.values()))} schedules of {len(found)} programs, {left_out} left out")


if __name__ == "__main__":
    run_script(main)
