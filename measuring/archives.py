"""A collection on disk: its parts, its note, and the archive it is packed into."""

import dataclasses
import datetime
import re
import tarfile
from pathlib import Path

import orjson

from config import UserError, make_folder, replace_file
from dumps import own
from dumps.archives import ARCHIVE_ERRORS
from dumps.companions import ADAMS2019, EVERYWHERE, HASH, LOWERED_SUFFIX, SCHEDULE_SUFFIX
from dumps.files import Unusable
from measuring import collection
from measuring.candidate import proposal_of
from measuring.collection import PriorSchedule
from measuring.machine import differences
from measuring.processes import identities

NOTE, RECORD = "collection.json", "program.json"
# What a collection writes: its note, and in a program's folder the record and the files of each schedule.
OWN_FILE = re.compile(rf"{RECORD}|\d+r*(\.sample|\.schedule\.h|{re.escape(SCHEDULE_SUFFIX)}|{re.escape(LOWERED_SUFFIX)})")
LEFT_BY_NOTE = (f"{NOTE}.lock", f"{NOTE}.tmp")


def known_schedules(path):
    """What a packed collection measured: (its source, {program: random seed}, {program: {key: PriorSchedule}}), repetitions left out."""
    source, seeds, known, counts = None, {}, {}, {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                *_, program, name = member.name.split("/")
                if name == NOTE:
                    source = orjson.loads(archive.extractfile(member).read())["source"]
                elif name.endswith(LOWERED_SUFFIX):
                    found = orjson.loads(archive.extractfile(member).read())
                    found.pop(HASH, None)
                    if EVERYWHERE in found:  # else of an earlier version, which counted less, or not counted
                        counts.setdefault(program, {})[name.removesuffix(LOWERED_SUFFIX)] = found
                elif name.endswith(SCHEDULE_SUFFIX):
                    dump = own.read(orjson.loads(archive.extractfile(member).read()))
                    counts.setdefault(program, {})[name.removesuffix(SCHEDULE_SUFFIX)] = dump.counts
                elif name == RECORD:
                    record = orjson.loads(archive.extractfile(member).read())
                    seeds[program] = record["seed"]
                    known[program] = {k: c for k, c in record["candidates"].items() if c["outcome"] == "measured" and k.isdecimal()}
        for program, candidates in known.items():
            for key, c in candidates.items():
                own_counts = counts.get(program, {}).get(key.zfill(3))
                candidates[key] = PriorSchedule(proposal_of(c), c["hash"], own_counts, c.get("schedule", ""))
    except (*ARCHIVE_ERRORS, Unusable, AttributeError, KeyError, TypeError, ValueError) as error:
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        raise UserError(f"{path}: not a packed collection of collect_schedules.py ({words}); give --again one") from None
    if not source or not any(known.values()):
        raise UserError(f"{path}: no measured schedules in it; give --again a collection packed by collect_schedules.py")
    return source, seeds, {program: candidates for program, candidates in known.items() if candidates}


# Folders


def archive_of(folder):
    return folder.with_name(folder.name + ".tar.xz")


def names(output):
    """OUTPUT, OUTPUT-2, OUTPUT-3, ... without end."""
    yield output
    n = 2
    while True:
        yield output.with_name(f"{output.name}-{n}")
        n += 1


def parts(output):
    """The folders of this collection, oldest first: of OUTPUT, OUTPUT-2, ... those that hold one."""
    found = []
    for folder in names(output):
        if (folder / NOTE).exists():
            found.append(folder)
        elif not folder.exists() and not archive_of(folder).exists():
            return found


def is_free(folder):
    """Whether nothing of anybody's lies at this name, as a folder or as an archive."""
    taken = folder.exists() and (not folder.is_dir() or any(p.name not in LEFT_BY_NOTE for p in folder.iterdir()))
    return not taken and not archive_of(folder).exists()


def check_output(output):
    """Raises UserError where something else than a collection lies at `output`."""
    if not parts(output) and output.exists() and not is_free(output):
        raise UserError(f"{output}: there is something else than a collection in it, which is left alone; give another --output")


def open_part(output, source, machine, n_drifted, origins=(ADAMS2019,)):
    """(folder to go on in, why it is not the newest one or ""): the newest part if it was measured as `machine` says, else a new one."""
    found, differing = parts(output), []
    if found:
        differing = differences(orjson.loads((found[-1] / NOTE).read_bytes())["machine"], machine)
        if not differing and not n_drifted:
            return found[-1], ""
    folder = make_folder(next(name for name in names(output) if is_free(name)), "output")
    started = datetime.datetime.now(datetime.UTC).date().isoformat()
    content = {"name": folder.name, "started": started, "source": source, "origins": origins, "machine": machine, "calibration": []}
    replace_file(folder / NOTE, orjson.dumps(content, option=orjson.OPT_INDENT_2))
    return folder, f"{found[-1]} was measured otherwise ({'; '.join(differing)}): this goes on in {folder}" if differing else ""


def check_source(output, source):
    """Raises UserError where the collection at `output` was measured from other programs."""
    for folder in parts(output):
        noted = orjson.loads((folder / NOTE).read_bytes())["source"]
        if noted != source:
            raise UserError(f"{folder}: measured from other programs ({noted}); give another --output")


def noted_origins(output):
    """Where the schedules of the collection at `output` come from, as of origins.ORIGINS; None where there is no collection yet."""
    notes = [orjson.loads((folder / NOTE).read_bytes()) for folder in parts(output)]
    return tuple(notes[0].get("origins", [ADAMS2019])) if notes else None


def check_identities(output, specs):
    """Raises UserError where a program in the collection at `output` has been measured and is another one today.

    Identities are worked out in processes of their own: a user's file may do anything.
    """
    records = {}  # {spec: [its records]}
    for spec in specs:
        paths = [folder / spec.name / RECORD for folder in parts(output)]
        found = [(path, orjson.loads(path.read_bytes())) for path in paths if path.exists()]
        records[spec] = [(path, r) for path, r in found if any(c["outcome"] == "measured" for c in r["candidates"].values())]
    measured = [spec for spec in specs if records[spec]]
    now = identities(measured) if measured else {}
    for spec in measured:
        for path, record in records[spec]:
            if record.get("identity") != now.get(spec):
                raise UserError(f"{path}: {otherwise(spec, record)}; give another --output")


def otherwise(spec, record):
    """In words, why what `record` (of program.json, or the note of a tuning) holds does not belong to the program that `spec` is now."""
    if "identity" not in record:
        return "measured by an earlier version, which did not note of what program, so that nothing can be added to it"
    here = {"params": dict(spec.params), "target": str(spec.halide_target()), "threads": spec.threads}
    differing = [f"{key} {record[key]}, here {value}" for key, value in here.items() if record.get(key, value) != value]
    return f"{spec.name} was measured as another program ({'; '.join(differing) or 'its algorithm, sizes or inputs have changed'})"


def is_complete(spec, folders, plan):
    """Whether a program has been measured in one of the parts: all it can give, or as many schedules as wanted."""
    for folder in folders:
        if (folder / spec.name / RECORD).exists():
            run = collection.ProgramRun(spec, dataclasses.replace(plan, folder=str(folder)))
            if run.record["complete"] and not run.next_keys():
                return True
    return False


# Archives


def own_files(folder):
    """The files in `folder` that a collection wrote, what a reader must know of a program before its schedules."""
    programs = [record.parent for record in folder.glob(f"*/{RECORD}")]
    files = [f for program in programs for f in program.iterdir() if f.is_file() and OWN_FILE.fullmatch(f.name)]
    files += [folder / NOTE] if (folder / NOTE).exists() else []
    return sorted(files, key=lambda f: (f.parent, f.name != RECORD, f))


def pack(folder):
    """FOLDER.tar.xz with what a collection wrote in `folder`, always the same bytes for the same files; then removes those files.

    Whatever else lies in the folder stays there. Raises UserError, and removes nothing, where the archive is there already and is not this
    folder's.
    """
    archive = archive_of(folder)
    if not archive.exists():
        temporary = archive.with_name(archive.name + ".tmp")

        def anonymous(info):
            info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode = 0, 0, 0, "", "", 0o644
            return info

        with tarfile.open(temporary, "w:xz", preset=9) as tar:
            for f in own_files(folder):
                tar.add(f, f.relative_to(folder.parent), filter=anonymous)
        temporary.rename(archive)
    missing = not_in_archive(folder, archive)
    if missing:
        raise UserError(f"{archive} is there already, without {missing[0].relative_to(folder.parent)} as it is; give another --output")
    remove_own_files(folder)
    return archive


def not_in_archive(folder, archive):
    """The files that a collection wrote in `folder` of which the archive holds no exact copy."""
    missing = {str(f.relative_to(folder.parent)): f for f in own_files(folder)}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                f = missing.get(member.name)
                if f is not None and member.isfile() and tar.extractfile(member).read() == f.read_bytes():
                    del missing[member.name]
    except ARCHIVE_ERRORS:
        pass  # what could not be read is missing
    return list(missing.values())


def remove_own_files(folder):
    """Remove what a collection wrote in `folder`, and each folder that is then empty."""
    files = own_files(folder)
    folders = sorted({f.parent for f in files} | {folder}, reverse=True)  # a folder after those in it
    unfinished = [f for place in folders for f in place.glob("*.tmp") if OWN_FILE.fullmatch(f.stem)]
    for f in [*files, *unfinished, *(folder / name for name in LEFT_BY_NOTE)]:
        f.unlink(missing_ok=True)
    for place in folders:
        if not any(place.iterdir()):
            place.rmdir()


def packed_programs(output):
    """Names of the programs that are complete in the packed parts of this collection, of one that was stopped while it was packed."""
    found = set()
    for folder in names(output):
        if archive_of(folder).exists():
            with tarfile.open(archive_of(folder)) as tar:
                records = [orjson.loads(tar.extractfile(m).read()) for m in tar if Path(m.name).name == RECORD]
            found |= {record["name"] for record in records if record["complete"]}
        elif not folder.exists():
            return found
