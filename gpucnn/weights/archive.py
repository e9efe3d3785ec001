"""Zip files read with suspicion: every size is checked before memory is taken, and nothing is unpacked to the disk.

Source of the rules: CVE-2024-0450 (entries that share bytes) and the ratios of deflate's bombs.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator

MAX_RATIO = 200  # an archive may unpack to so many times its size,
ALWAYS_ALLOWED = 16 << 20  # or to so many bytes where that is more; deflate alone can reach 1,030 times
MAX_DIRECTORY = 4 << 20  # bytes of the list of entries; Python makes an object of each
_CHUNK = 1 << 18
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature; lengths of the name and of the extra field that follow
_KINDS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 1

# What the zip module raises for damaged archives; callers that read from one catch these too.
DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError),
    *(ValueError, LookupError, OverflowError),
)


class Archive:
    """The entries of a zip file by name; `entries` maps names to sizes in bytes."""

    def __init__(self, archive: zipfile.ZipFile, file: io.BufferedReader, size: int) -> None:
        found = archive.infolist()
        self._archive, self._infos = archive, {info.filename: info for info in found}
        self.entries = {info.filename: info.file_size for info in found}
        if len(self.entries) != len(found):
            raise ValueError("an entry's name comes twice")
        for info in found:
            if info.compress_type not in _KINDS or info.flag_bits & _ENCRYPTED:
                raise ValueError(f"entry {info.filename!r:.80} is encrypted, or packed otherwise than by deflate")
        if sum(self.entries.values()) > max(ALWAYS_ALLOWED, MAX_RATIO * size):
            raise ValueError(f"its {size} bytes unpack to more than {MAX_RATIO} times as many")
        _check_places(file, found, archive.start_dir)

    def read(self, name: str) -> bytearray:
        """The entry's bytes; KeyError where there is none of the name, ValueError unless it has the size it should."""
        data, wanted = bytearray(), self.entries[name]
        with self._archive.open(self._infos[name]) as entry:
            while chunk := entry.read(min(_CHUNK, wanted + 1 - len(data))):
                data += chunk
        if len(data) != wanted:
            raise ValueError(f"entry {name!r:.80} has {len(data)} bytes, not the {wanted} announced")
        return data


@contextlib.contextmanager
def open_archive(path: str) -> Iterator[Archive]:
    """The zip file at `path`; raises one of DAMAGED for what is none, OSError for what cannot be read."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # do not wait for a pipe's writer
    with _Guarded(io.FileIO(descriptor)) as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no ordinary file")
        with zipfile.ZipFile(file) as archive:
            yield Archive(archive, file, status.st_size)


class _Guarded(io.BufferedReader):
    """A file of which no more is read at a time than a list of entries may have."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY:
            raise ValueError(f"its list of entries claims {size} bytes; at most {MAX_DIRECTORY} are read")
        return super().read(size)


def _check_places(file: io.BufferedReader, found: list[zipfile.ZipInfo], directory: int) -> None:
    """Raise ValueError where two entries share bytes, or one shares some with the list of entries."""
    end = 0
    for info in sorted(found, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise ValueError(f"entry {info.filename!r:.80} shares bytes with another one")
        file.seek(info.header_offset)
        signature, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        if signature != b"PK\3\4":
            raise ValueError(f"entry {info.filename!r:.80} is not where it should be")
        end = info.header_offset + _LOCAL_HEADER.size + name + extra + info.compress_size
    if end > directory:
        raise ValueError("an entry reaches into the list of entries")
