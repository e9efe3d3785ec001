"""Files are written wholly or not at all: full disks, failures at each step, what killed processes leave, pipes."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gpucnn import files

OLD, NEW = b"old" * 1000, b"new" * 2000


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A file that holds OLD, alone in its folder."""
    path = tmp_path / "state.bin"
    path.write_bytes(OLD)
    return path


def assert_untouched(path: Path) -> None:
    assert path.read_bytes() == OLD
    assert os.listdir(path.parent) == [path.name]


# Writing


@pytest.mark.parametrize("before", [None, b"", OLD, NEW * 2], ids=["new", "empty", "shorter", "longer"])
def test_contents_are_replaced(tmp_path: Path, before: bytes | None) -> None:
    path = tmp_path / "state.bin"
    if before is not None:
        path.write_bytes(before)
    files.write_atomically(path, NEW)
    assert path.read_bytes() == NEW
    assert os.listdir(tmp_path) == ["state.bin"]


def test_pieces_are_joined_in_order(tmp_path: Path) -> None:
    pieces = (piece for piece in (b"ab", memoryview(b"cde"), b"", memoryview(bytearray(b"f"))))
    files.write_atomically(tmp_path / "joined", pieces)
    assert (tmp_path / "joined").read_bytes() == b"abcdef"


def test_a_name_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files.write_atomically("here", NEW)
    assert (tmp_path / "here").read_bytes() == NEW


def test_short_writes_are_continued(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(files.os, "write", lambda descriptor, view: write(descriptor, view[:7]))
    files.write_atomically(old, NEW)
    monkeypatch.undo()
    assert old.read_bytes() == NEW


def test_bytes_are_on_the_disk_before_the_name_and_the_name_before_the_return(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, rename = os.fsync, os.rename

    def noted_fsync(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else f"file of {os.fstat(descriptor).st_size}"
        calls.append(f"fsync {kind}")
        fsync(descriptor)

    def noted_rename(source: str, target: str) -> None:
        calls.append("rename")
        rename(source, target)

    monkeypatch.setattr(files.os, "fsync", noted_fsync)
    monkeypatch.setattr(files.os, "rename", noted_rename)
    files.write_atomically(old, NEW)
    assert calls == [f"fsync file of {len(NEW)}", "rename", "fsync folder"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.write_atomically(tmp_path / "shared", NEW)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o640


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "real").write_bytes(OLD)
    (tmp_path / "link").symlink_to(Path("disk") / "real")
    files.write_atomically(tmp_path / "link", NEW)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "real").read_bytes() == NEW
    assert os.listdir(tmp_path / "disk") == ["real"]


def test_pipes_are_written_straight(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    files.write_atomically(pipe, NEW)
    reader.join(10)
    assert found == [NEW]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_writers_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "contested"
    contents = [bytes([letter]) * 50_000 for letter in b"abcd"]
    writers = [
        threading.Thread(target=lambda mine=mine: [files.write_atomically(path, mine) for _ in range(10)])
        for mine in contents
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
    assert path.read_bytes() in contents
    assert os.listdir(tmp_path) == ["contested"]


# Failing


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("step", ["write", "fsync", "rename", "open"])
def test_a_failure_keeps_the_old_file(old: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int) -> None:
    real_open = os.open

    def fail(*arguments: object, **keywords: object) -> None:
        raise OSError(number, os.strerror(number))

    def fail_for_new_files(path: str, flags: int, *arguments: int, **keywords: int) -> int:
        return fail() if flags & os.O_CREAT else real_open(path, flags, *arguments, **keywords)

    monkeypatch.setattr(files.os, step, fail_for_new_files if step == "open" else fail)
    with pytest.raises(files.WriteError) as caught:
        files.write_atomically(old, NEW)
    monkeypatch.undo()
    text = f"cannot write {old} ({len(NEW)} bytes): {os.strerror(number)}; {files.FIXES[number]}"
    assert (str(caught.value), caught.value.errno, caught.value.filename) == (text, number, str(old))
    assert_untouched(old)


def test_a_failure_in_the_middle_keeps_the_old_file(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write

    def half(descriptor: int, view: memoryview) -> int:
        if len(view) < len(NEW):
            raise OSError(errno.ENOSPC, "full")
        return write(descriptor, view[: len(NEW) // 2])

    monkeypatch.setattr(files.os, "write", half)
    with pytest.raises(files.WriteError, match=r"\(6000 bytes\): No space left on device; free some space"):
        files.write_atomically(old, NEW)
    monkeypatch.undo()
    assert_untouched(old)


def test_an_interruption_leaves_no_litter(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(old, NEW)
    monkeypatch.undo()
    assert_untouched(old)


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL])
def test_a_folder_that_cannot_be_synchronised(old: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    fsync = os.fsync

    def fail_for_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", fail_for_folders)
    if number == errno.EINVAL:  # the file system has no such thing
        files.write_atomically(old, NEW)
    else:
        with pytest.raises(files.WriteError, match="the disk reports a fault"):
            files.write_atomically(old, NEW)
    assert old.read_bytes() == NEW
    assert os.listdir(old.parent) == [old.name]


def test_descriptors_are_given_back(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.EIO, "fault")

    before = len(os.listdir("/proc/self/fd"))
    for step in ("write", "fsync", "rename"):
        with monkeypatch.context() as patch, pytest.raises(files.WriteError):
            patch.setattr(files.os, step, fail)
            files.write_atomically(old, NEW)
    files.write_atomically(old, NEW)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_limit_on_file_sizes_keeps_the_old_file(old: Path) -> None:
    """As a full disk does, RLIMIT_FSIZE lets a write stop half-way; in a process of its own, as it cannot be undone."""
    program = (
        "import resource, sys; from gpucnn import files\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: files.write_atomically(sys.argv[1], bytes(10000))\n"
        "except OSError as error: sys.exit(str(error))\n"
    )
    found = subprocess.run([sys.executable, "-c", program, str(old)], capture_output=True, text=True, timeout=60)
    assert found.stderr.strip() == f"cannot write {old} (10000 bytes): File too large; {files.FIXES[errno.EFBIG]}"
    assert_untouched(old)


def test_a_full_device() -> None:
    with pytest.raises(files.WriteError, match=r"cannot write /dev/full \(6000 bytes\): No space left on device; free"):
        files.write_atomically("/dev/full", NEW)


def test_wrong_places(tmp_path: Path, old: Path) -> None:
    for path, text in (
        (tmp_path / "none" / "file", "No such file or directory; create the folder first"),
        (old / "file", "Not a directory; a parent of this path is a file, not a folder: name another folder"),
        (tmp_path, "Is a directory; this is a folder: name a file in it"),
        (tmp_path / ("n" * 300), "File name too long; use a shorter file name"),
    ):
        with pytest.raises(files.WriteError) as caught:
            files.write_atomically(path, NEW)
        assert str(caught.value) == f"cannot write {path} ({len(NEW)} bytes): {text}"
    assert_untouched(old)


# Litter


def litter(folder: Path, name: str, number: int = 0) -> Path:
    """What a process that was killed while writing `name` leaves behind."""
    path = folder / f".{name}.{os.getpid()}.{number}.tmp"
    path.write_bytes(b"half")
    return path


def test_writing_removes_litter_of_the_same_file_only(old: Path) -> None:
    mine, other = litter(old.parent, old.name, 7), litter(old.parent, "other.bin")
    files.write_atomically(old, NEW)
    assert not mine.exists()
    assert other.exists()


def test_sweep_removes_what_killed_processes_left(tmp_path: Path) -> None:
    found = [litter(tmp_path, "a.b.c"), litter(tmp_path, "a.b.c", 1), litter(tmp_path, "d")]
    names = ("state.bin", ".hidden", "x.1.2.tmp", ".x.1.tmp", ".x.1.2.tmp~", ".x.a.2.tmp")
    others = [tmp_path / name for name in names]
    for path in others:
        path.write_bytes(b"precious")
    assert sorted(files.sweep(tmp_path, "a.b.c")) == sorted(map(str, found[:2]))
    assert files.sweep(tmp_path) == [str(found[2])]
    assert sorted(os.listdir(tmp_path)) == sorted(path.name for path in others)


def test_sweep_keeps_what_is_being_written(tmp_path: Path) -> None:
    path = litter(tmp_path, "state.bin")
    with open(path, "rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        assert files.sweep(tmp_path) == []
        assert path.exists()
    assert files.sweep(tmp_path) == [str(path)]


def test_sweep_follows_no_links_and_waits_for_no_pipe(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"precious")
    (tmp_path / ".a.1.2.tmp").symlink_to("target")
    os.mkfifo(tmp_path / ".b.1.2.tmp")
    (tmp_path / ".c.1.2.tmp").mkdir()
    files.sweep(tmp_path)
    assert (tmp_path / "target").read_bytes() == b"precious"
    assert (tmp_path / ".a.1.2.tmp").is_symlink()
    assert (tmp_path / ".c.1.2.tmp").is_dir()


def test_sweep_of_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none"):
        files.sweep(tmp_path / "none")
