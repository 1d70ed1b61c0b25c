"""The files under raw_path: folders in depth, links followed, each file once however often it can be reached."""

import hashlib
import os
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from config import UserError
from dumps.companions import COMPANION_NAMES, LOWERED_SUFFIX, printable, schedule_of

SKIPPED_FOLDERS = {".git", "__MACOSX"}
FEW_WORDS = 16  # that a name with commas is made of, at most


@dataclass
class Folder:
    """A folder under `root`, which was given. `files` are to be read, `present` lie in it; `error` says why they can't be listed."""

    root: Path
    folder: Path
    files: list = field(default_factory=list)
    present: set = field(default_factory=set)
    error: str = ""


def split_paths(raw_path):
    """The paths in a list separated by commas. A comma in the name of something that exists separates nothing."""
    words, paths = raw_path.split(","), []
    while words:
        for n in range(min(len(words), FEW_WORDS), 0, -1):
            joined = ",".join(words[:n])
            found = next((path for path in (joined, joined.strip()) if path.strip() and os.path.lexists(path)), None)
            if found:
                break
        paths.append(found or words[0].strip())
        words = words[n:]
    return [path for path in paths if path]


def iter_folders(raw_path):
    """A Folder for every folder under `raw_path`, in a stable order, each file once however often it can be reached.

    A file that is given by itself comes with its companions, on which it depends. Links are followed after all else, so that what lies
    under `raw_path` itself goes by its own name. Raises UserError where what is given does not exist.
    """
    listed, single, links = set(), set(), deque()
    for part in split_paths(raw_path):
        path = Path(part)
        if path.is_dir():
            yield from _walk(path, path, listed, links)
        elif path.exists():
            links.append((path.parent, path.parent, [path.name]))
        else:
            raise UserError(f"{printable(part)}: no such file or folder; give the path of measured schedules")
    while links:
        root, folder, names = links.popleft()
        if names is None:
            yield from _walk(root, folder, listed, links)
            continue
        real = {name: os.path.realpath(folder / name) for name in names}
        read = {name for name, path in real.items() if path in single or (os.path.dirname(path) in listed and os.path.exists(path))}
        new = [name for name in names if name not in read]
        single.update(real.values())
        if new:
            found = {*COMPANION_NAMES, *(schedule_of(name) + LOWERED_SUFFIX for name in new)}
            yield Folder(root, folder, new, {name for name in found if (folder / name).is_file()})


def _walk(root, folder, listed, links):
    """A Folder for `folder` and each below it, depth first. Links go to `links`: (root, folder, names of files), or (root, link, None)."""
    waiting = [str(folder)]
    while waiting:
        path = waiting.pop()
        real = os.path.realpath(path)
        if real in listed:
            continue
        listed.add(real)
        found = Folder(root, Path(path))
        subfolders, linked = [], []
        try:
            with os.scandir(path) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.is_dir(follow_symlinks=False):
                        subfolders += [entry.path] if entry.name not in SKIPPED_FOLDERS else []
                    elif entry.is_symlink() and os.path.isdir(entry.path):
                        links.append((root, Path(entry.path), None))
                    elif entry.is_symlink():
                        linked.append(entry.name)
                    elif entry.is_file():
                        found.files.append(entry.name)
        except OSError as error:
            found.error = error.strerror or str(error)
        if linked:
            links.append((root, found.folder, linked))
        found.present = {*found.files, *linked}
        yield found
        waiting += subfolders[::-1]


def inputs_hash(raw_path):
    """A hash of which files are under `raw_path`, with their sizes and times of change: the same where nothing has been touched."""
    digest = hashlib.sha256()
    for folder in iter_folders(raw_path):
        for file in (os.path.join(folder.folder, name) for name in sorted({*folder.files, *folder.present})):
            try:
                found = os.stat(file)
            except OSError:
                found = os.lstat(file)  # a link to nothing
            digest.update(f"{printable(file)}\0{found.st_size}\0{found.st_mtime_ns}\0".encode())
    return digest.hexdigest()
