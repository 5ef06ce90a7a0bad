"""Where the peers are installed: an environment of their own, for their requirements are hundreds of packages."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
EXPORTER = Path(__file__).with_name("export_models.py")
HOW = "python -m benchmarks.peers --install"


class PeersError(Exception):
    """The peers cannot be had; the message says why, and the way out."""


class Models(NamedTuple):
    """What was exported: ``facts`` as export_models.py wrote them, and the models' files by name."""

    facts: dict[str, Any]
    files: dict[str, Path]


def default_folder() -> Path:
    """Beside the engines' cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cbigan-station" / "peers"


def python_of(env: Path) -> Path:
    """Its interpreter."""
    return env / "bin" / "python"


def is_installed(env: Path) -> bool:
    """Whether :func:`install` came to its end."""
    return (env / "complete").is_file()


def install(env: Path, index: str | None) -> None:
    """Make the environment, unless it is there; 2 GB, minutes.

    Args:
        env: its folder.
        index: URL of the packages to install torch and torchvision from; None: pip's own.

    Raises:
        PeersError: pip failed, or would bring CUDA's libraries.
    """
    if is_installed(env):
        return
    pip = [python_of(env), "-m", "pip", "--disable-pip-version-check", "install"]
    where = ["--extra-index-url", index] if index else []
    _run([sys.executable, "-m", "venv", env], "venv")
    # Told beforehand: a torch for CUDA is 3 GB of libraries that this comparison does not touch.
    plan = env / "plan.json"
    _run([*pip, "--quiet", "--dry-run", "--report", plan, "-r", REQUIREMENTS, *where], "pip")
    refuse_cuda(json.loads(plan.read_text()))
    _run([*pip, "-r", REQUIREMENTS, *where], "pip")
    (env / "complete").touch()


def refuse_cuda(report: dict[str, Any]) -> None:
    """Look through what ``pip install --dry-run --report`` says.

    Raises:
        PeersError: CUDA's libraries are among it.
    """
    planned = [package["metadata"]["name"] for package in report["install"]]
    cuda = [name for name in planned if name.startswith("nvidia-")]
    if cuda:
        raise PeersError(
            f"pip would install {len(cuda)} of CUDA's packages ({cuda[0]}, ...); name the index of torch's builds for "
            f"the CPU (see pytorch.org, 'Get started'): {HOW} --index URL"
        )


def export(env: Path, size: int) -> Models:
    """The peers' models for frames of ``size`` × ``size`` pixels; written by the environment once, about a minute.

    Raises:
        PeersError: the environment is not there, or the export failed.
    """
    if not is_installed(env):
        raise PeersError(f"the peers are not installed in {env}; `{HOW}` does that (2 GB)")
    folder = env / "models" / str(size)
    facts = folder / "facts.json"
    if not facts.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        log = env / "export.log"
        with log.open("w") as out:
            done = subprocess.run(
                [python_of(env), EXPORTER, "--size", str(size), "write", folder],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | {"HF_HUB_OFFLINE": "1"},
                check=False,
            )
        if done.returncode:
            raise PeersError(f"exporting the peers failed; {log} says why")
    read = json.loads(facts.read_text())
    return Models(read, {name: folder / file for name, file in read["models"].items()})


class TorchPeers:
    """anomalib's own inference in PyTorch, in a process of the peers' environment that waits between frames."""

    def __init__(self, env: Path, size: int, threads: int) -> None:
        self._process = subprocess.Popen(
            [python_of(env), EXPORTER, "--size", str(size), "serve", "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # Its threads must not spin while it is another's turn.
            env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"},
        )
        if self._answer() != "ready":
            raise PeersError(f"{EXPORTER.name} serve does not start in {env}")

    def score(self, name: str) -> None:
        """Run one peer on one frame; returns when it is done."""
        if self._process.stdin is None:
            raise PeersError("closed")
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        if not self._answer():
            raise PeersError(f"{name} failed in PyTorch")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> str:
        return self._process.stdout.readline().strip() if self._process.stdout else ""


def _run(command: list[str | Path], what: str) -> None:
    if subprocess.run(command, check=False).returncode:
        raise PeersError(f"{what} failed; what it said is above")
