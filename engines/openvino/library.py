"""Finds OpenVINO. engines/__init__.py keeps it from reporting to its maker, so it is imported nowhere else."""

import importlib
import mmap
import platform
from functools import cache
from typing import Any

from engines.errors import BackendError

NAME = "OpenVINO"
OLDEST = (2025, 4)
DEVICE = "CPU"
MACHINES = ("x86_64", "AMD64")

_INSTALL = "`pip install 'cbigan-station[openvino]'` installs it"


def openvino() -> Any:  # noqa: ANN401 - a module, whose stubs mypy is not told of (it has no py.typed)
    """Intel's module.

    Raises:
        BackendError: it cannot be used; says why and the way out.
    """
    module, problem = _find()
    if module is None:
        raise BackendError(f"OpenVINO cannot be used: {problem}")
    return module


def problem() -> str | None:
    """Why OpenVINO cannot run a bundle here, and the way out; None: it can."""
    return _find()[1]


def version() -> str:
    """Such as 2026.4.1. Compiled models fit no other."""
    return str(openvino().__version__).partition("-")[0]


@cache
def core() -> Any:  # noqa: ANN401
    """OpenVINO's ``Core``; one a process is enough."""
    return openvino().Core()


def capabilities() -> frozenset[str]:
    """What this CPU is made to compute in, in OpenVINO's words: FP32, BF16, INT8 and more."""
    return frozenset(core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"))


def errors() -> tuple[type[Exception], ...]:
    """What OpenVINO raises; it has no base of its own."""
    frontend = openvino().frontend
    return (
        RuntimeError,
        frontend.GeneralFailure,
        frontend.InitializationFailure,
        frontend.NotImplementedFailure,
        frontend.OpConversionFailure,
        frontend.OpValidationFailure,
    )


def reason(error: Exception) -> str:
    """What OpenVINO complains of, without the places in its source code."""
    lines = (line.strip() for line in str(error).splitlines())
    return "; ".join(line for line in lines if line and not line.startswith(("Exception from ", "Check '")))[:300]


@cache
def _find() -> tuple[Any | None, str | None]:
    """The module, or what is wrong with it."""
    if (problem := _unsuited()) is not None:  # first: a large library need not be loaded
        return None, problem
    try:
        module = importlib.import_module("openvino")
    except ModuleNotFoundError as error:
        missing = error.name == "openvino"
        return None, f"openvino is not installed; {_INSTALL}" if missing else f"it cannot be loaded ({error})"
    except (ImportError, OSError, RuntimeError) as error:
        return None, f"it cannot be loaded ({error})"
    problem = _unusable(module)
    return (module, None) if problem is None else (None, problem)


def _unsuited() -> str | None:
    """What is wrong with this machine or process."""
    if platform.machine() not in MACHINES:
        return f"this machine is {platform.machine()}, and it was tried on x86_64 only"
    if not _may_make_code():
        return (
            "it compiles code while it runs, and this process may not make memory executable: under systemd, "
            "`systemctl edit` the unit and set MemoryDenyWriteExecute=no"
        )
    return None


def _unusable(module: Any) -> str | None:  # noqa: ANN401
    # Left-overs of a package make an importable folder with nothing in it.
    if not hasattr(module, "Core") or not hasattr(module, "__version__"):
        return f"it is an empty folder; {_INSTALL}"
    found = str(module.__version__)
    numbers = tuple(int(part) for part in found.partition("-")[0].split(".") if part.isdigit())
    return None if numbers[:2] >= OLDEST else f"{found} is older than {'.'.join(map(str, OLDEST))}; {_INSTALL}"


def _may_make_code() -> bool:
    try:
        mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
    except OSError:
        return False
    return True
