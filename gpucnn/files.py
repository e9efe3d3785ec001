"""Files that are wholly written or not at all; checkpoints, metrics and --json results go through here."""

import contextlib
import errno
import fcntl
import itertools
import os
import re
from collections.abc import Iterable
from pathlib import Path

TEMPORARY = re.compile(r"\.(?P<name>.+)\.\d+\.\d+\.tmp")  # .checkpoint.safetensors.<pid>.<n>.tmp
_numbers = itertools.count()

FIXES = {
    errno.ENOSPC: "free some space on that disk or write to another one",
    errno.EDQUOT: "your quota is used up: delete something or write to another disk",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f) or write to another file system",
    errno.ENOENT: "create the folder first",
    errno.ENOTDIR: "a parent of this path is a file, not a folder: name another folder",
    errno.EISDIR: "this is a folder: name a file in it",
    errno.EACCES: "name a folder you may write to",
    errno.EPERM: "name a folder you may write to",
    errno.EROFS: "this file system is read-only: name a folder you may write to",
    errno.ENAMETOOLONG: "use a shorter file name",
    errno.EIO: "the disk reports a fault: save elsewhere and check it",
}


class WriteError(OSError):
    """A file could not be written: the text names path, bytes, reason and fix; errno and filename are set."""

    def __str__(self) -> str:
        return str(self.strerror)


def cache_root() -> Path:
    """Where compiled kernels and tuning results go: GPUCNN_CACHE_DIR, else ~/.cache/gpucnn. It may not exist yet."""
    return Path(os.environ.get("GPUCNN_CACHE_DIR") or os.path.expanduser("~/.cache/gpucnn"))


def cache_folder(name: str) -> Path:
    """The folder `name` in the cache, made if it is missing.

    Code is loaded from it, so it must be the user's own: raises PermissionError if others may write to it or own it,
    and OSError where it cannot be made.
    """
    folder = cache_root() / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o002:
        raise PermissionError(
            f"{folder}: others own it or may write to it, and so run code as you: chmod 700, or set "
            "GPUCNN_CACHE_DIR to a folder of your own"
        )
    return folder


def write_atomically(path: str | os.PathLike[str], data: bytes | Iterable[bytes | memoryview]) -> None:
    """Replace the file `path`: at any moment, power cuts included, it holds the old bytes or the new ones.

    The bytes go to a temporary file in the same folder, which is fsynced and renamed; the folder is fsynced too.
    A failure removes the temporary and leaves the old file; a kill leaves at most one temporary, which the next
    write to the path removes. Links are followed; devices and pipes (/dev/stdout) are written straight.

    path: the file; its folder must exist.
    data: bytes, or one-dimensional byte buffers, written one after the other without being joined.
    Raises WriteError (an OSError) naming path, bytes wanted, reason and likely fix.
    Source: Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014.
    """
    chunks: list[bytes | memoryview] = [data] if isinstance(data, bytes) else list(data)
    size = sum(len(chunk) for chunk in chunks)
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            _write_straight(os.fspath(path), chunks)
        else:
            _replace(os.path.realpath(path), chunks)
    except OSError as error:
        raise _explained(error, os.fspath(path), size) from error


def sweep(directory: str | os.PathLike[str], name: str | None = None) -> list[str]:
    """Remove the temporary files that killed processes left in `directory`; return their paths.

    A temporary is locked (flock) while its writer lives, and the kernel drops the lock however the writer dies:
    one that can be locked is stale. (Process ids come again, after a restart and in containers.)

    name: only those of the file of this name; None for all.
    Raises OSError if the folder cannot be read.
    """
    with os.scandir(directory) as entries:
        matches = [TEMPORARY.fullmatch(entry.name) for entry in entries]
    found = [match[0] for match in matches if match and name in (None, match["name"])]
    return [path for path in (os.path.join(directory, each) for each in found) if _remove_if_stale(path)]


def _replace(target: str, chunks: list[bytes | memoryview]) -> None:
    folder, name = os.path.split(target)
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sweep(folder, name)
        temporary, descriptor = _create_temporary(folder, name)
        try:
            _write_all(descriptor, chunks)
            os.fsync(descriptor)
            os.rename(temporary, target)  # before the close, which gives up the lock
        except BaseException:  # KeyboardInterrupt must leave no litter either
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        finally:
            os.close(descriptor)
        _synchronise_folder(directory)
    finally:
        os.close(directory)


def _create_temporary(folder: str, name: str) -> tuple[str, int]:
    """A new, locked file in `folder`: (path, descriptor)."""
    while True:
        path = os.path.join(folder, f".{name}.{os.getpid()}.{next(_numbers)}.tmp")
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError:  # another thread's, or another container's process of the same number
            continue
        with contextlib.suppress(OSError):  # a file system without locks: nothing is ever stale there
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return path, descriptor
        os.close(descriptor)  # another process swept it between creation and lock


def _remove_if_stale(path: str) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # gone already, or not a file of ours
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
        return True
    except OSError:  # its writer lives
        return False
    finally:
        os.close(descriptor)


def _write_straight(path: str, chunks: list[bytes | memoryview]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        _write_all(descriptor, chunks)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, chunks: list[bytes | memoryview]) -> None:
    for chunk in chunks:
        view = memoryview(chunk)
        while view:
            view = view[os.write(descriptor, view) :]  # the kernel takes at most 2 GiB a call


def _synchronise_folder(directory: int) -> None:
    try:
        os.fsync(directory)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system on which folders cannot be synchronised
            raise


def _explained(error: OSError, path: str, size: int) -> WriteError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    fix = FIXES.get(error.errno or 0, "write to another folder")
    return WriteError(error.errno, f"cannot write {path} ({size} bytes): {reason}; {fix}", path)
