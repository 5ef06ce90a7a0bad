"""Finds OpenVINO. engines/__init__.py keeps it from reporting to its maker, so it is imported nowhere else."""

import importlib
import platform
from functools import cache
from typing import Any

from engines.errors import BackendError

NAME = "OpenVINO"
OLDEST = (2025, 0)
DEVICE = "CPU"
MACHINES = ("x86_64", "AMD64")

INSTALL = "`pip install 'cbigan-station[openvino]'` installs it"


def openvino() -> Any:  # noqa: ANN401 - a module, whose stubs mypy is not told of (it has no py.typed)
    """Intel's module.

    Raises:
        BackendError: it cannot be used; says why and what to install.
    """
    module, problem = _find()
    if module is None:
        raise BackendError(f"OpenVINO cannot be used: {problem}. {INSTALL}")
    return module


def problem() -> str | None:
    """Why OpenVINO cannot run a bundle here, in a few words; None: it can."""
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
    if platform.machine() not in MACHINES:
        return None, f"this machine is {platform.machine()}, and it was tried on x86_64 only"
    try:
        module = importlib.import_module("openvino")
    except ModuleNotFoundError as error:
        return None, "openvino is not installed" if error.name == "openvino" else f"it cannot be loaded ({error})"
    except (ImportError, OSError, RuntimeError) as error:
        return None, f"it cannot be loaded ({error})"
    # Left-overs of a package make an importable folder with nothing in it.
    if not hasattr(module, "Core") or not hasattr(module, "__version__"):
        return None, "it is an empty folder"
    found = str(module.__version__)
    numbers = tuple(int(part) for part in found.partition("-")[0].split(".") if part.isdigit())
    if numbers[:2] < OLDEST:
        return None, f"{found} is older than {'.'.join(map(str, OLDEST))}"
    return module, None
