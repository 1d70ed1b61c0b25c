"""A collection on disk: its parts, its note, and the archive it is packed into."""

import dataclasses
import datetime
import shutil
import tarfile

import orjson

from config import UserError, make_folder, replace_file
from dumps.files import ARCHIVE_ERRORS, EVERYWHERE, LOWERED_SUFFIX
from halide_tools.autoschedulers import Proposal
from measuring import collection
from measuring.collection import PriorSchedule
from measuring.machine import describe_machine


def known_schedules(path):
    """What a packed collection measured: (its source, {program: random seed}, {program: {key: PriorSchedule}}), repetitions left out."""
    source, seeds, known, counts = None, {}, {}, {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                *_, program, name = member.name.split("/")
                if name == "collection.json":
                    source = orjson.loads(archive.extractfile(member).read())["source"]
                elif name.endswith(LOWERED_SUFFIX):
                    found = orjson.loads(archive.extractfile(member).read())
                    if EVERYWHERE in found:  # else an earlier version's, which lack some kinds
                        counts.setdefault(program, {})[name.removesuffix(LOWERED_SUFFIX)] = found
                elif name == "program.json":
                    record = orjson.loads(archive.extractfile(member).read())
                    seeds[program] = record["seed"]
                    known[program] = {k: c for k, c in record["candidates"].items() if c["outcome"] == "measured" and k.isdecimal()}
        for program, candidates in known.items():
            for key, c in candidates.items():
                candidates[key] = PriorSchedule(Proposal.from_record(c), c["hash"], counts.get(program, {}).get(key.zfill(3)))
    except (*ARCHIVE_ERRORS, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: not a packed collection of collect_schedules.py ({type(error).__name__}: {' '.join(str(error).split())[:100]}); give --again one"
        ) from None
    if not source or not any(known.values()):
        raise UserError(f"{path}: no measured schedules in it; give --again a collection packed by collect_schedules.py")
    return source, seeds, {program: candidates for program, candidates in known.items() if candidates}


def parts(output):
    """The folders of this collection, oldest first: OUTPUT, OUTPUT-2, ..."""
    found = [output]
    while (following := output.with_name(f"{output.name}-{len(found) + 1}")).exists():
        found.append(following)
    return [folder for folder in found if (folder / "collection.json").exists()]


def open_part(output, source, n_drifted):
    """The folder to go on in: the newest part if this is its machine, else a new one. Raises UserError for other programs' part."""
    machine = describe_machine()
    found = parts(output)
    if found:
        note = orjson.loads((found[-1] / "collection.json").read_bytes())
        if note["source"] != source:
            raise UserError(f"{found[-1]}: measured from other programs ({note['source']}); give another --output")
        if note["machine"] == machine and not n_drifted:
            return found[-1]
    folder = make_folder(output if not found else output.with_name(f"{output.name}-{len(found) + 1}"), "output")
    started = datetime.datetime.now(datetime.UTC).date().isoformat()
    content = {"name": folder.name, "started": started, "source": source, "machine": machine, "calibration": []}
    replace_file(folder / "collection.json", orjson.dumps(content, option=orjson.OPT_INDENT_2))
    return folder


def is_complete(spec, folders, plan):
    """Whether a program has been measured in one of the parts: all it can give, or as many schedules as wanted."""
    for folder in folders:
        if (folder / spec.name / "program.json").exists():
            run = collection.ProgramRun(spec, dataclasses.replace(plan, folder=str(folder)))
            if run.record["complete"] and not run.next_keys():
                return True
    return False


def pack(folder):
    """`folder` as FOLDER.tar.xz, always the same bytes for the same files; the folder is deleted."""
    archive = folder.with_name(folder.name + ".tar.xz")
    temporary = archive.with_name(archive.name + ".tmp")
    files = [f for f in folder.rglob("*") if f.is_file() and f.suffix not in (".tmp", ".lock")]
    files.sort(key=lambda f: (f.parent, f.name != "program.json", f))  # what a reader wants to know of a program before its schedules

    def anonymous(info):
        info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode = 0, 0, 0, "", "", 0o644
        return info

    with tarfile.open(temporary, "w:xz", preset=9) as tar:
        for f in files:
            tar.add(f, f.relative_to(folder.parent), filter=anonymous)
    temporary.replace(archive)
    shutil.rmtree(folder)
    return archive
