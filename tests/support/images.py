"""File systems in files, mounted through loop devices: their power can be cut, and what is on the disk copied."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_MEBIBYTE = 1 << 20
_PROGRAMS = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])

# Size, how to make it, how to mount it. ext4's auto_da_alloc writes data before a rename over a file; without it, an
# fsync that is missing shows. The sizes are little more than the least that is allowed.
_KINDS = {
    "ext4": (32 * _MEBIBYTE, ["mkfs.ext4", "-q", "-F"], "noauto_da_alloc"),
    "xfs": (300 * _MEBIBYTE, ["mkfs.xfs", "-q", "-f"], ""),
    "btrfs": (120 * _MEBIBYTE, ["mkfs.btrfs", "-q", "-f", "-m", "single"], ""),
}

# XFS_IOC_GOINGDOWN, which ext4 has as well, and what it does to the journal.
_SHUT_DOWN = 0x8004587D
_FLUSH_JOURNAL = 1
_DROP_JOURNAL = 2

_BTRFS_START_SYNC = 0x80089418
_BTRFS_WAIT_SYNC = 0x40089416

_MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def memory_at(directory: Path, options: str = "") -> Iterator[Path]:
    """A directory for images that does not wait for a real disk. Skips the test where nothing can be mounted."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    try:
        _mount("tmpfs", directory, "tmpfs", options)
    except OSError as error:
        pytest.skip(f"nothing can be mounted here: {error.strerror}")
    try:
        yield directory
    finally:
        # Whoever else looks at new devices may keep the image open for a moment.
        _require(_libc.umount2(os.fsencode(directory), _MNT_DETACH) == 0)


class Image:
    """A mounted file system. Close it."""

    def __init__(self, kind: str, file: Path) -> None:
        """Mount `file`, made anew if it is not there. Skips the test where that cannot be done."""
        self.kind = kind
        self.file = file
        self.directory = file.with_suffix(".mounted")
        size, make, self._options = _KINDS[kind]
        if not file.exists():
            with open(file, "wb") as new:
                new.truncate(size)
            _run(*make, str(file))
        self._device = _run("losetup", "--find", "--show", str(file)).strip()
        self.directory.mkdir()
        try:
            self._mount()
        except OSError as error:
            self._detach()
            pytest.skip(f"{kind} cannot be mounted here: {error.strerror}")

    def close(self) -> None:
        try:
            if os.path.ismount(self.directory):
                self._unmount()
        finally:
            self._detach()

    def sync(self) -> None:
        """Write everything to the disk, as sync(1) would, but of this file system alone."""
        with self._open() as fd:
            _require(_libc.syncfs(fd) == 0)

    def cut(self, metadata_is_written: bool) -> None:
        """Cut the power: every call fails from here on, and what was not synced is lost.

        With `metadata_is_written`, names and inodes are as they were last: the file system has written them of
        itself at the last moment. It has not yet written what is in the files. Skips the test where the kernel
        cannot do it.
        """
        with self._open() as fd:
            try:
                fcntl.ioctl(fd, _SHUT_DOWN, struct.pack("=I", _FLUSH_JOURNAL if metadata_is_written else _DROP_JOURNAL))
            except OSError as error:
                if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP):
                    raise
                pytest.skip(f"this kernel cannot cut off {self.kind}")

    def restart(self) -> None:
        """Mount it again, as after a power cut. Fails, having done so, when this process had left a file open."""
        try:
            self._unmount()
        finally:
            self._mount()

    def write_metadata(self) -> None:
        """Write names and inodes, and not what is in the files: what btrfs does of itself from time to time."""
        with self._open() as fd:
            transaction = fcntl.ioctl(fd, _BTRFS_START_SYNC, bytes(8))
            fcntl.ioctl(fd, _BTRFS_WAIT_SYNC, transaction)

    def copy(self, target: Path) -> bytes:
        """Copy what is on the disk, and return a digest of it. What was not synced is not on the disk."""
        while True:
            before = self._writes()
            digest = _copy_sparse(self.file, target)
            if self._writes() == before:
                return digest

    @contextmanager
    def unmounted(self) -> Iterator[None]:
        """Two file systems with one UUID, an image and its copy, cannot be mounted together."""
        self._unmount()
        try:
            yield
        finally:
            self._mount()

    @contextmanager
    def _open(self) -> Iterator[int]:
        fd = os.open(self.directory, os.O_RDONLY)
        try:
            yield fd
        finally:
            os.close(fd)

    def _writes(self) -> tuple[str, str]:
        """How many writes the device has done, and how many requests are under way."""
        fields = Path("/sys/block", os.path.basename(self._device), "stat").read_text().split()
        return fields[4], fields[8]

    def _mount(self) -> None:
        _mount(self._device, self.directory, self.kind, self._options)

    def _unmount(self) -> None:
        left_open = []
        for number in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):  # the one that the listing was read through
                path = os.readlink(f"/proc/self/fd/{number}")
                if path.startswith(f"{self.directory}/"):
                    left_open.append(path)
                    os.close(int(number))
        _unmount(self.directory)
        assert not left_open, f"files that were left open: {left_open}"

    def _detach(self) -> None:
        subprocess.run(["losetup", "--detach", self._device], check=True, env={**os.environ, "PATH": _PROGRAMS})
        self.directory.rmdir()


# By system calls: there are hundreds of these, and mount(8) takes longer than the mounting.


def _mount(source: str, target: Path, kind: str, options: str) -> None:
    _require(_libc.mount(source.encode(), os.fsencode(target), kind.encode(), 0, options.encode()) == 0)


def _unmount(target: Path) -> None:
    _require(_libc.umount2(os.fsencode(target), 0) == 0)


def _require(succeeded: bool) -> None:
    if not succeeded:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _copy_sparse(source: Path, target: Path) -> bytes:
    digest = hashlib.sha256()
    with open(source, "rb") as reader, open(target, "wb") as writer:
        size = os.fstat(reader.fileno()).st_size
        end = 0
        while True:
            try:
                start = os.lseek(reader.fileno(), end, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:  # no more data
                    raise
                break
            end = os.lseek(reader.fileno(), start, os.SEEK_HOLE)
            reader.seek(start)
            data = reader.read(end - start)
            digest.update(b"%d:" % start)
            digest.update(data)
            writer.seek(start)
            writer.write(data)
        writer.truncate(size)
    return digest.digest()


def _run(name: str, *arguments: str) -> str:
    program = shutil.which(name, path=_PROGRAMS)
    if program is None:
        pytest.skip(f"there is no {name}")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"{name} does not work here: {done.stderr.strip()}")
    return done.stdout
