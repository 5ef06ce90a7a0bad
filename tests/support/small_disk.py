"""A real disk that is small, fills up, breaks and comes back: an ext4 image on a loop device, mounted for one test."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType

import pytest
from typing_extensions import Self


def _root(*command: str | Path, stdin: str = "") -> bool:
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if shutil.which((*sudo, *command)[0]) is None:
        return False
    done = subprocess.run([*sudo, *command], input=stdin, text=True, capture_output=True, check=False)
    return done.returncode == 0


class SmallDisk:
    """``with SmallDisk(tmp_path) as disk: …``; skips the test where nothing may be mounted.

    Attributes:
        folder: where it is mounted.
    """

    def __init__(self, folder: Path, mib: int = 8) -> None:
        self.folder = folder / "disk"
        self._image = folder / "disk.img"
        self._mib = mib
        self._ballast = self.folder / "ballast"

    def fill(self) -> None:
        """Leave no byte."""
        with self._ballast.open("wb", buffering=0) as file:
            for size in (2**16, 2**10):  # the last blocks one by one
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def make_room(self) -> None:
        self._ballast.unlink()

    def break_down(self) -> None:
        """What the kernel does after an error of the medium: the file system turns read-only, whoever writes."""
        device = next(
            line.split()[0]
            for line in Path("/proc/self/mounts").read_text().splitlines()
            if line.split()[1] == str(self.folder)
        )
        assert _root("tee", f"/sys/fs/ext4/{Path(device).name}/trigger_fs_error", stdin="1")

    def replace(self) -> None:
        """Mount another, empty disk in its place."""
        self._unmount()
        self._image.unlink()
        assert self._mount()

    def _mount(self) -> bool:
        with self._image.open("wb") as file:
            file.truncate(self._mib * 2**20)
        owner = f"root_owner={os.geteuid()}:{os.getegid()}"
        format_ = ("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", "-E", owner, self._image)
        if shutil.which("mkfs.ext4") is None or subprocess.run(format_, check=False).returncode:
            return False
        return _root("mount", "-o", "loop,errors=remount-ro", self._image, self.folder)

    def _unmount(self) -> None:
        _root("umount", "--lazy", self.folder)  # lazy: a station may hold files on it open

    def __enter__(self) -> Self:
        self.folder.mkdir()
        if not self._mount():
            pytest.skip("no right to mount a small disk (needs root or sudo, a loop device and mkfs.ext4)")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._unmount()
