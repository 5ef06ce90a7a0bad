#!/usr/bin/env python3
"""Installs the station on a Jetson, beside JetPack's own OpenCV and TensorRT, in a virtual environment of its own.

    sudo python3 deploy/jetson/install.py                   from this checkout to /opt/cbigan-station
    python3 deploy/jetson/install.py --prefix ~/station     or anywhere else
    python3 deploy/jetson/install.py --check                only say what is there and what is missing

What JetPack brings stays as it is and is used from where it is: TensorRT, which fits the driver, and OpenCV, which has
GStreamer and with it CSI and GigE cameras. pip knows neither, and left to itself it would put its own OpenCV, without
GStreamer, in front of JetPack's. So the environment gets a stand-in: the metadata of a package, with JetPack's version
and no files. pycuda is compiled here with JetPack's CUDA; that takes some ten minutes.

Needs nothing but JetPack's Python. Running it again updates what is there.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PREFIX = Path("/opt/cbigan-station")
RELEASE_FILE = Path("/etc/nv_tegra_release")
CUDA_BIN = Path("/usr/local/cuda/bin")
OLDEST_RELEASE = 36  # JetPack 6; JetPack 5 has Python 3.8
OLDEST_OPENCV = (4, 8)  # as in pyproject.toml

PROBE = """
import json, sys
found = {}
try:
    import numpy
    found["numpy"] = numpy.__version__
except ImportError:
    pass
try:
    import cv2
    found["cv2"] = cv2.__version__
    found["cv2_file"] = cv2.__file__
    found["gstreamer"] = any("GStreamer" in line and "YES" in line for line in cv2.getBuildInformation().splitlines())
except ImportError as error:
    found["cv2_error"] = str(error)
try:
    import tensorrt
    found["tensorrt"] = tensorrt.__version__
except ImportError as error:
    found["tensorrt_error"] = str(error)
json.dump(found, sys.stdout)
"""


class InstallError(Exception):
    """Something is missing; the message says what to do."""


@dataclass(frozen=True)
class JetPack:
    """What the system brings.

    Attributes:
        numpy: version of the system's numpy, which its OpenCV was built for; None: there is none.
        opencv: version of the system's OpenCV if the station can use it, or else None.
        gstreamer: whether that OpenCV has GStreamer.
        tensorrt: version of TensorRT.
    """

    numpy: str | None
    opencv: str | None
    gstreamer: bool
    tensorrt: str


def parse_release(text: str) -> int | None:
    """Major release of Jetson Linux from /etc/nv_tegra_release: 36 from ``# R36 (release), REVISION: 4.3, …``."""
    match = re.match(r"# R(\d+) \(release\)", text)
    return int(match[1]) if match else None


def check_release(path: Path = RELEASE_FILE) -> None:
    """Refuse a JetPack that is too old. A container has no such file, and its base image decides."""
    try:
        release = parse_release(path.read_text())
    except OSError:
        return
    if release is not None and release < OLDEST_RELEASE:
        raise InstallError(
            f"Jetson Linux R{release} is older than R{OLDEST_RELEASE} (JetPack 6), the oldest that the station runs "
            "on; flash a newer JetPack: https://developer.nvidia.com/embedded/jetpack"
        )


def probe(python: str) -> JetPack:
    """Ask a Python what it finds on the system."""
    output = subprocess.run([python, "-c", PROBE], check=True, capture_output=True, text=True).stdout
    return read_probe(json.loads(output))


def read_probe(found: dict[str, object]) -> JetPack:
    """Judge what a Python found."""
    if "tensorrt" not in found:
        raise InstallError(
            f"JetPack's TensorRT for Python is missing ({found['tensorrt_error']}); `sudo apt-get install "
            "nvidia-jetpack` installs it with all else that is needed"
        )
    version = str(found["cv2"]) if "cv2" in found else None
    usable = version is not None and tuple(map(int, version.split(".")[:2])) >= OLDEST_OPENCV
    return JetPack(
        numpy=str(found["numpy"]) if "numpy" in found else None,
        opencv=version if usable else None,
        gstreamer=usable and bool(found["gstreamer"]),
        tensorrt=str(found["tensorrt"]),
    )


def check_tools(cuda_bin: Path = CUDA_BIN) -> None:
    """What a virtual environment and the compilation of pycuda need."""
    needed = {
        "nvidia-jetpack": (cuda_bin / "nvcc").is_file(),
        "python3-venv": importlib.util.find_spec("ensurepip") is not None,
        "python3-dev": Path(sysconfig.get_path("include"), "Python.h").is_file(),
        "g++": shutil.which("g++") is not None,
    }
    if missing := [package for package, there in needed.items() if not there]:
        raise InstallError(f"missing, and needed for pycuda: `sudo apt-get install {' '.join(missing)}`")


def add_stand_in(site_packages: Path, name: str, version: str) -> None:
    """Let pip believe that a package is installed, without a file of it: the system has it."""
    for old in site_packages.glob(f"{name.replace('-', '_')}-*.dist-info"):
        for file in old.iterdir():
            file.unlink()
        old.rmdir()
    folder = site_packages / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    summary = "Stand-in: the system's own is used"
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: {summary}\n")
    (folder / "INSTALLER").write_text("cbigan-station\n")
    (folder / "RECORD").write_text("".join(f"{folder.name}/{file},,\n" for file in ("METADATA", "INSTALLER", "RECORD")))


def find_site_packages(python: Path) -> Path:
    """Where the environment of ``python`` keeps its packages."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip())


def constraints(jetpack: JetPack) -> list[str]:
    """What pip must not go beyond: OpenCV works with the numpy that it was built for, and with no newer generation."""
    if jetpack.opencv is None or jetpack.numpy is None:
        return []
    return [f"numpy<{int(jetpack.numpy.split('.')[0]) + 1}"]


def run(*command: str | Path, environment: dict[str, str] | None = None) -> None:
    """Run a command before the user's eyes."""
    print("+", *command, flush=True)
    try:
        subprocess.run(command, check=True, env=environment)
    except subprocess.CalledProcessError as error:
        raise InstallError(f"this failed with exit code {error.returncode}: {' '.join(map(str, command))}") from error


def install(prefix: Path, source: str, jetpack: JetPack) -> None:
    """Make or update the environment."""
    python = prefix / "bin" / "python"
    if not python.exists():
        run(sys.executable, "-m", "venv", "--system-site-packages", prefix)
    site_packages = find_site_packages(python)
    if jetpack.opencv is not None:
        add_stand_in(site_packages, "opencv-python-headless", jetpack.opencv)
    limits = prefix / "constraints.txt"
    limits.write_text("".join(f"{limit}\n" for limit in constraints(jetpack)))
    environment = {**os.environ, "PATH": f"{CUDA_BIN}:{os.environ['PATH']}", "CUDA_HOME": str(CUDA_BIN.parent)}
    run(python, "-m", "pip", "install", "--upgrade", "--constraint", limits, f"{source}[cuda]", environment=environment)
    check_installed(python, jetpack)


def check_installed(python: Path, before: JetPack) -> None:
    """See that the environment uses what JetPack brings, and that pycuda was compiled."""
    after = probe(str(python))
    if (after.opencv, after.gstreamer) != (before.opencv, before.gstreamer) and before.opencv is not None:
        raise InstallError(
            f"the environment uses OpenCV {after.opencv}, not JetPack's {before.opencv}; remove {python.parents[1]} "
            "and install again"
        )
    if after.tensorrt != before.tensorrt:
        raise InstallError(f"the environment uses TensorRT {after.tensorrt}, not JetPack's {before.tensorrt}")
    run(python, "-c", "import importlib.util as u; assert u.find_spec('pycuda._driver'), 'pycuda has no driver module'")
    run(python.with_name("station"), "--version")


def describe(jetpack: JetPack) -> None:
    """Say what is there."""
    print(f"TensorRT {jetpack.tensorrt}: JetPack's is used")
    if jetpack.opencv is None:
        oldest = ".".join(map(str, OLDEST_OPENCV))
        print(
            f"OpenCV: the system has none of version {oldest} or newer, so pip's is installed. It has no GStreamer: "
            "cameras by v4l2, rtsp and http work, gstreamer: (CSI, GigE) does not"
        )
    else:
        print(f"OpenCV {jetpack.opencv}: the system's is used, {'with' if jetpack.gstreamer else 'WITHOUT'} GStreamer")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prefix", type=Path, default=PREFIX, help=f"where to (default {PREFIX})")
    parser.add_argument(
        "--source", default=str(CHECKOUT), help="checkout, wheel or name for pip (default: this checkout)"
    )
    parser.add_argument("--check", action="store_true", help="install nothing")
    options = parser.parse_args()
    try:
        check_release()
        jetpack = probe(sys.executable)
        check_tools()
        describe(jetpack)
        if not options.check:
            install(options.prefix.expanduser().absolute(), options.source, jetpack)
            print(f"\ndone: {options.prefix}/bin/station")
    except InstallError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
