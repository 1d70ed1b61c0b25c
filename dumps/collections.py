"""Which collection a dump belongs to: the measurements of one machine, that lie in one folder or archive."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from dumps.companions import COLLECTION_FILE, Note, printable, read_note, read_or_none

BATCH_FOLDER = re.compile(r"batch_\d+(_\d+)*")  # of Halide's autotune loop: one run's batches lie side by side
PART_NUMBER = re.compile(r"(-([2-9]|[1-9]\d))+$")  # of the parts of a collection, as collect_schedules.py opens them: NAME-2, NAME-3
PARENTS_WITH_NOTE = 2  # above what was given, in which its collection.json is looked for: it may be a program of a collection


@dataclass
class Where:
    """The collection of a folder's dumps: the place on disk that stands for it, its name, and what is known of it."""

    place: str
    name: str
    note: Note | None = None
    is_held_out: bool = False
    is_marked: bool = False  # by a collection.json, or as one that is held out; else it is one for want of a better


class Collections:
    """Which collection a dump belongs to. `names` are those held out.

    A collection is a folder with a collection.json, or that is held out; else an archive, or a folder right under what was given. One name
    stands for one place and one machine.
    """

    def __init__(self, names):
        self.names = names
        self.notes = {}  # {folder on disk: Note}
        self.owners = {}  # {name: [place, machine]}
        self.above = {}  # {what was given: folder above it with a collection.json, or None}

    def is_held_out(self, name, note=None):
        """Whether a collection of this name, or of the name in its note, is held out, or is NAME-2, NAME-3, ... of one that is."""
        own = [name, *([note.name] if note else [])]
        return any(part in self.names for name in own for part in (name, PART_NUMBER.sub("", name)) if part)

    def on_disk(self, root, folder):
        """Where the files in `folder` belong."""
        top, parts = os.path.realpath(root), folder.relative_to(root).parts
        places = [os.path.join(top, *parts[:depth]) for depth in range(len(parts) + 1)]
        notes = {depth: self.notes[place] for depth, place in enumerate(places) if place in self.notes}
        nearest = notes[max(notes)] if notes else None
        held_out = [d for d, place in enumerate(places) if self.is_held_out(os.path.basename(place), notes.get(d))]
        if held_out or notes:
            depth = held_out[0] if held_out else max(notes)
            return Where(places[depth], "/".join(parts[:depth]) or os.path.basename(top), nearest, bool(held_out), True)
        if above := self._above(top):
            return above
        in_batch = re.fullmatch(rf"(.+)/{BATCH_FOLDER.pattern}(/\d+)?", top)
        if parts and not BATCH_FOLDER.fullmatch(parts[0]) and not in_batch:
            return Where(places[1], parts[0])
        place = in_batch[1] if in_batch else top
        return Where(place, os.path.basename(place))

    def _above(self, top):
        """The collection that what was given is a part of: Where, or None."""
        if top not in self.above:
            noted = (place for place in list(Path(top).parents)[:PARENTS_WITH_NOTE] if (place / COLLECTION_FILE).is_file())
            self.above[top] = next(noted, None)
        place = self.above[top]
        if place is None:
            return None
        note = self.notes.setdefault(str(place), read_note(read_or_none(place / COLLECTION_FILE)))
        return Where(str(place), place.name, note, self.is_held_out(place.name, note), True)

    def in_archive(self, outer, folder, notes):
        """Where an archive's members in `folder` belong. `outer` : of the archive itself; `notes` : {folder in it: Note}."""
        folders = list(folders_above(folder))
        stem = os.path.basename(outer.place)
        known = {i: notes[path] for i, path in enumerate(folders) if path in notes}
        note = known[max(known)] if known else outer.note
        names = [path.rpartition("/")[2] for path in folders]
        held_out = [i for i, name in enumerate(names) if self.is_held_out(name, known.get(i))]
        if outer.is_held_out or not (held_out or known):
            return Where(outer.place, outer.name, note, outer.is_held_out)
        depth = held_out[0] if held_out else max(known)
        within = [name for name in names[: depth + 1] if name not in ("", ".", "..")]
        within = within[1:] if within[:1] == [stem] else within  # as if it had been unpacked beside itself
        return Where("/".join([outer.place, *within]), "/".join([outer.name, *within]), note, bool(held_out))

    def assign(self, dump, where):
        """`dump`, with its collection filled in."""
        dump.machine = where.note.machine if where.note else None
        dump.collection, dump.is_held_out = printable(self._unique_name(where, dump.machine)), where.is_held_out
        return dump

    def _unique_name(self, where, machine):
        """`where.name`; with more of its path in front where another place goes by it, with a number behind for a second machine's."""
        name, parents = where.name, where.place.removesuffix(where.name).rstrip("/").split("/")
        number = 1
        while True:
            owner = self.owners.setdefault(name, [where.place, machine])
            if owner[0] == where.place and (machine is None or owner[1] in (None, machine)):
                owner[1] = owner[1] or machine
                return name
            if owner[0] != where.place and parents and parents[-1]:
                name = f"{parents.pop()}/{name}"
            else:
                number += 1
                name = f"{where.name} (machine {number})"


def folders_above(folder):
    """'' , `a`, `a/b` for the folder `a/b` of an archive."""
    yield ""
    for at, character in enumerate(folder):
        if character == "/":
            yield folder[:at]
    if folder:
        yield folder
