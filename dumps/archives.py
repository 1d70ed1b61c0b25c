"""Archives and compressed files, read without unpacking: what is damaged, encrypted, absurdly large or no file costs itself alone.

No more than MAX_DUMP_BYTES of a member are ever in memory, whatever its header or its compression promises.
"""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib

MAX_DUMP_BYTES = 2**26
MAX_HEADER_BYTES = 2**20  # of a tar member's long name or extended attributes, which tarfile reads into memory at once
READS_AT_THE_END = 8  # of a whole archive there are two or three
PIECE = 2**12  # bytes asked for at a time: zipfile decompresses as much of its input at once, and that may expand a thousandfold
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".zip")
COMPRESSED_SUFFIXES = (".gz", ".xz", ".bz2")
# What the standard library raises on damaged archives, all of it seen with mutated ones (benchmarks/fuzzing.py).
ARCHIVE_ERRORS = (
    tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, struct.error, EOFError, OSError, RuntimeError, TypeError, ValueError,
    LookupError, ArithmeticError, AttributeError, MemoryError,
)  # fmt: skip
DECOMPRESSORS = {b"\x1f\x8b\x08": gzip.open, b"\xfd7zXZ\x00": lzma.open, b"BZh": bz2.open}  # by what a file begins with
ZIP_START = b"PK\x03\x04"
TAR_MAGIC_AT, TAR_MAGIC = 257, b"ustar"
TAR_HEADER_TYPES = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


def iter_members(path):
    """(name, contents, error) of every file in the archive at `path`, in its order; `error` is () or (reason, detail).

    Raises one of ARCHIVE_ERRORS where the archive can't be read any further.
    """
    with open(path, "rb") as f:
        is_zip = f.read(4) == ZIP_START or path.lower().endswith(".zip")
    yield from _zip_members(path) if is_zip else _tar_members(path)


def is_archive_name(name):
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def head(path):
    """The first bytes of a file, decompressed if it is compressed; none where they can't be had."""
    try:
        with open(path, "rb") as f:
            data = f.read(tarfile.BLOCKSIZE)
            opener = opener_of(data)
            if opener is None:
                return data
            f.seek(0)
            return opener(f).read(tarfile.BLOCKSIZE)
    except ARCHIVE_ERRORS:
        return b""


def looks_like_an_archive(data):
    return data.startswith(ZIP_START) or data[TAR_MAGIC_AT : TAR_MAGIC_AT + len(TAR_MAGIC)] == TAR_MAGIC


def opener_of(head):
    """What decompresses a file that begins with these bytes; None where it is not compressed."""
    return next((opener for magic, opener in DECOMPRESSORS.items() if head.startswith(magic)), None)


def decompress(data):
    """The contents of a compressed file. Raises OverflowError where they are larger than MAX_DUMP_BYTES, or one of ARCHIVE_ERRORS."""
    return read_bounded(opener_of(data)(io.BytesIO(data)))


def read_bounded(stream):
    """All bytes of a stream. Raises OverflowError for more than MAX_DUMP_BYTES, having read no more."""
    pieces, size = [], 0
    while piece := stream.read(PIECE):
        pieces.append(piece)
        size += len(piece)
        if size > MAX_DUMP_BYTES:
            raise OverflowError(too_large())
    return b"".join(pieces)


def too_large(size=None):
    return f"{f'{size} bytes' if size else 'its contents'}: more than the {MAX_DUMP_BYTES} that are read"


def without_suffixes(label):
    """`a/b.tar.xz` -> `a/b`."""
    for suffix in sorted(ARCHIVE_SUFFIXES, key=len, reverse=True):
        if label.lower().endswith(suffix):
            return label[: -len(suffix)]
    return os.path.splitext(label)[0]


def _tar_members(path):
    # tarfile's own decompression takes time that grows with the square of what is expanded from a few bytes.
    with open(path, "rb") as f, (opener_of(f.peek(8)) or contextlib.nullcontext)(f) as contents:
        with tarfile.open(fileobj=_Ending(contents), mode="r|", tarinfo=_StrictTarInfo) as tar:
            for member in tar:
                if not member.isdir():
                    yield member.name, *_tar_contents(tar, member)
            while piece := tar.fileobj.read(PIECE):
                if piece.strip(b"\0"):
                    raise tarfile.ReadError("there is more behind its end, as if it had been damaged there or joined with another")


def _tar_contents(tar, member):
    """(contents, error) of one member."""
    if member.islnk() or member.issym():
        kind = "hard" if member.islnk() else "symbolic"
        return b"", ("link", f"a {kind} link to {member.linkname[:80]}; what it leads to is read where it lies, if it is packed")
    if not member.isfile():
        return b"", ("no_file", "a device or a pipe")
    if member.size > MAX_DUMP_BYTES:
        return b"", ("too_large", too_large(member.size))
    return tar.extractfile(member).read(), ()


class _Ending:
    """A stream that is not read beyond its end for long: tarfile would skip a member of 2**90 bytes block by block."""

    def __init__(self, stream):
        self.stream, self.reads_left = stream, READS_AT_THE_END

    def read(self, size):
        data = self.stream.read(size)
        self.reads_left -= not data
        if self.reads_left < 0:
            raise EOFError("it ends within a member")
        return data


class _StrictTarInfo(tarfile.TarInfo):
    """tarfile takes a damaged header for the end of the archive, and all behind it would be lost without a word."""

    @classmethod
    def fromtarfile(cls, tar):
        try:
            return super().fromtarfile(tar)
        except (tarfile.TruncatedHeaderError, tarfile.InvalidHeaderError, tarfile.EmptyHeaderError) as error:
            raise tarfile.ReadError(f"damaged or cut off: {error}") from None

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        info = super().frombuf(buf, encoding, errors)
        if info.size < 0 or (info.type in TAR_HEADER_TYPES and info.size > MAX_HEADER_BYTES):
            raise tarfile.InvalidHeaderError(f"a header that claims {info.size} bytes")
        return info


def _zip_members(path):
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.filename.endswith("/"):
                yield member.filename, *_zip_contents(archive, member)
        n_listed = len(archive.infolist())
    n = _zip_size(path)
    if n_listed % 2**16 != n and n != 2**16 - 1:  # that of archives with more, which say how many elsewhere
        raise zipfile.BadZipFile(f"{n_listed} of its {n} members can be found")


def _zip_size(path):
    """How many members a zip's last record says it has, modulo 2**16."""
    with open(path, "rb") as f:
        f.seek(-min(os.path.getsize(path), 2**16 + 22), os.SEEK_END)
        tail = f.read()
    return struct.unpack_from("<H", tail, tail.rindex(b"PK\x05\x06") + 10)[0]


def _zip_contents(archive, member):
    """(contents, error) of one member."""
    if stat.S_ISLNK(member.external_attr >> 16):
        return b"", ("link", "a symbolic link; what it leads to is read where it lies, if it is packed")
    if member.flag_bits & 1:
        return b"", ("encrypted", "protected by a password; pack it without one")
    if member.file_size > MAX_DUMP_BYTES:
        return b"", ("too_large", too_large(member.file_size))
    try:
        with archive.open(member) as stream:
            return read_bounded(stream), ()
    except OverflowError as error:
        return b"", ("too_large", str(error))
    except NotImplementedError as error:
        return b"", ("unsupported_compression", f"{error}; pack it with another, say deflate")
    except ARCHIVE_ERRORS as error:
        return b"", ("truncated", f"damaged in its archive: {error}"[:200])
