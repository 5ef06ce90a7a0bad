"""A real systemd as PID 1 of its own namespaces, in an overlay over this machine's root that is gone afterwards.

Units run there as on a line device: users, sandboxes, watchdog, restarts. Nothing of this machine is changed but a
cgroup, which is removed. The network is this machine's, so that brokers and cameras of the tests can be reached.
Needs root; the test is skipped where that or a kernel feature is missing.
"""

import os
import secrets
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import pytest
from typing_extensions import Self

from tests.support.mosquitto import need

REPOSITORY = Path(__file__).resolve().parents[2]
SYSTEMD = Path("/lib/systemd/systemd")
SHARED = Path("/srv/test")
PYTHON = Path("/srv/python/bin", Path(sys.executable).resolve().name)
STARTER = Path("/opt/cbigan-station/bin/station")
USER = "cbigan-station"

_BOOT = """
set -eu
upper=$1 shared=$2 repository=$3 python=$4 packages=$5
mount --make-rprivate /
mount -t tmpfs tmpfs "$upper"
mkdir "$upper/upper" "$upper/work" "$upper/root"
mount -t overlay -o "lowerdir=/,upperdir=$upper/upper,workdir=$upper/work" overlay "$upper/root"
cd "$upper/root"
mkdir -p srv/test srv/repository srv/python srv/packages
mount --bind "$shared" srv/test
mount --bind "$repository" srv/repository && mount -o remount,bind,ro srv/repository
mount --bind "$python" srv/python && mount -o remount,bind,ro srv/python
mount --bind "$packages" srv/packages && mount -o remount,bind,ro srv/packages
mount -t proc proc proc
mount --bind proc/sys proc/sys && mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for name in null zero full random urandom tty; do touch "dev/$name"; mount --bind "/dev/$name" "dev/$name"; done
mkdir dev/shm dev/pts
ln -s /proc/self/fd dev/fd
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
rm -rf etc/systemd/system var/lib/systemd
mkdir -p etc/systemd/system var/lib/systemd
for name in sysinit basic network-online multi-user station-test; do
  printf '[Unit]\\nDescription=Empty, for a test\\n' > "etc/systemd/system/$name.target"
done
mkdir -p mnt/outside
pivot_root . mnt/outside
umount -l /mnt/outside
mount --make-rshared /  # as systemd finds it on a machine; credentials reach their units by it
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin container=station-test \
  /lib/systemd/systemd --unit=station-test.target --log-target=null --show-status=no
"""


class SystemdRoot:
    """``with SystemdRoot(tmp_path) as root: root.run("systemctl", "start", "station@cam-1")``.

    Args:
        folder: for its log, and seen inside as ``SHARED``.
    """

    def __init__(self, folder: Path) -> None:
        self.shared = folder / "shared"
        self._folder = folder
        self._log = folder / "systemd.log"
        self._cgroup = _cgroup2() / f"station-test-{secrets.token_hex(4)}"

    def run(self, *command: str | Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as root."""
        done = subprocess.run(
            [*self._enter, "env", "-i", f"PATH={_PATH}", *(f"{k}={v}" for k, v in environment.items()), *command],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{command} failed with {done.returncode}:\n{done.stdout}{done.stderr}{self.log}")
        return done

    def path(self, inside: str | Path) -> Path:
        """Where a path of the inside can be reached from here."""
        return Path(f"/proc/{self._pid}/root", str(inside).lstrip("/"))

    def show(self, unit: str, name: str) -> str:
        return self.run("systemctl", "show", "--property", name, "--value", unit).stdout.strip()

    def wait_for(self, found: Callable[[], object], what: str, timeout: float = 90) -> None:
        deadline = time.monotonic() + timeout
        while not found():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: did not come about\n{self.log}")
            time.sleep(0.1)

    def put(self, inside: str | Path, text: str, mode: int = 0o644) -> None:
        """Write a file of the inside."""
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def add_user(self) -> None:
        """What the unit needs of the system; deploy/install.sh makes it on a device."""
        self.run("useradd", "--system", "--user-group", "--no-create-home", USER)
        for group in ("video", "render"):
            self.run("groupadd", "--system", "--force", group)

    def put_unit(self, module: str = "station", options: str = "", environment: str = "") -> None:
        """The unit as it is shipped, which starts this checkout; ``options`` are more lines for [Service]."""
        self.put("/etc/systemd/system/station@.service", (REPOSITORY / "deploy/systemd/station@.service").read_text())
        self.put(
            "/etc/systemd/system/station@.service.d/test.conf",
            f"[Service]\nStandardOutput=append:{SHARED}/station.log\nStandardError=append:{SHARED}/station.log\n{options}\n",
        )
        variables = (
            f"PYTHONPATH=/srv/repository:/srv/packages LD_LIBRARY_PATH=/srv/python/lib OMP_NUM_THREADS=1 {environment}"
        )
        self.put(STARTER, f'#!/bin/sh\nexec env {variables} {PYTHON} -m {module} "$@"\n', 0o755)
        self.run("systemctl", "daemon-reload")

    @property
    def log(self) -> str:
        """What the boot and the units that log to files said."""
        files = [self._log, *sorted(self.shared.glob("*.log"))]
        return "".join(f"--- {file.name}\n{file.read_text(errors='replace')}" for file in files if file.exists())

    def __enter__(self) -> Self:
        if os.geteuid() != 0 or not SYSTEMD.exists():
            pytest.skip("needs root and systemd")
        self.shared.mkdir(parents=True, exist_ok=True)
        self.shared.chmod(0o755)
        (self._folder / "overlay").mkdir(exist_ok=True)
        self._cgroup.mkdir()
        boot = [_BOOT, "boot", self._folder / "overlay", self.shared, REPOSITORY, sys.base_prefix]
        join = f'echo $$ > "{self._cgroup}/cgroup.procs"; exec "$@"'
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["sh", "-c", join, "join", need("unshare"), "--mount", "--pid", "--fork", "--uts", "--ipc", "--cgroup",
                 "--kill-child", "sh", "-c", *boot, sysconfig.get_path("purelib")],
                stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        try:
            self._wait_until_up()
        except BaseException:
            self._end()
            raise
        return self

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            if self._process.poll() is not None:
                text = self._log.read_text()
                if "ermission denied" in text or "not permitted" in text or "nknown filesystem" in text:
                    pytest.skip(f"namespaces or overlays are not to be had here: {text.strip()[-300:]}")
                raise AssertionError(f"systemd does not start:\n{text}")
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
            if children:
                self._pid = int(children[0])
                self._enter = [need("nsenter"), "-t", str(self._pid), "-m", "-p", "-u", "-i", "-C"]
                comm = Path(f"/proc/{self._pid}/comm").read_text().strip()
                if comm == "systemd" and self.run("systemctl", "is-system-running", check=False).returncode == 0:
                    return
            if time.monotonic() > deadline:
                raise AssertionError(f"systemd does not come up:\n{self._log.read_text()}")
            time.sleep(0.1)

    def _end(self) -> None:
        self._process.kill()  # the kernel ends its child, and with it all that lives in the namespaces
        self._process.wait()
        deadline = time.monotonic() + 10
        while not _removed(self._cgroup) and time.monotonic() < deadline:
            time.sleep(0.05)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(self.log)
        self._end()


_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _cgroup2() -> Path:
    unified = Path("/sys/fs/cgroup/unified")
    return unified if unified.exists() else Path("/sys/fs/cgroup")


def _removed(cgroup: Path) -> bool:
    """Remove a cgroup and those in it; false while the kernel still has processes of theirs to bury."""
    with suppress(OSError):
        for folder in sorted((path for path in cgroup.rglob("*") if path.is_dir()), reverse=True):
            folder.rmdir()
        cgroup.rmdir()
    return not cgroup.exists()
