import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from engines.engine import EngineSettings
from engines.errors import BackendError
from engines.opening import installed_backends, open_engine
from engines.openvino import library
from tests.support.bundles import make_bundle

installed = pytest.mark.skipif(library.problem() is not None, reason="the extra 'openvino' is not installed")


@pytest.fixture
def looked_for_anew():
    library._find.cache_clear()
    yield
    library._find.cache_clear()


def a_module(**names):
    module = ModuleType("openvino")
    for name, value in names.items():
        setattr(module, name, value)
    return module


@pytest.mark.usefixtures("looked_for_anew")
@pytest.mark.parametrize(
    ("module", "words"),
    [
        (None, "openvino is not installed"),
        (a_module(), "is an empty folder"),
        (a_module(Core=object, __version__="2024.6.0-1-releases"), "2024.6.0-1-releases is older than 2025.4"),
    ],
    ids=["missing", "left-overs", "old"],
)
def test_why_it_cannot_be_used_and_what_to_install(monkeypatch, tmp_path, module, words):
    monkeypatch.setattr(library.platform, "machine", lambda: "x86_64")
    monkeypatch.setitem(sys.modules, "openvino", module)
    assert words in library.problem()
    with pytest.raises(
        BackendError, match=r"OpenVINO cannot be used: .*`pip install 'cbigan-station\[openvino\]'` ins"
    ):
        library.openvino()
    assert "openvino" not in [backend.name for backend in installed_backends()]
    bundle = make_bundle(tmp_path / "toy", 16)
    with pytest.raises(BackendError, match=r"engine\.backend is openvino, which cannot run here: OpenVINO cannot be"):
        open_engine(bundle, EngineSettings(backend="openvino"))


@pytest.mark.usefixtures("looked_for_anew")
def test_a_broken_installation_says_what_is_broken(monkeypatch):
    monkeypatch.setattr(library.platform, "machine", lambda: "x86_64")

    def fail(name):
        raise ImportError("libtbb.so.12: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", fail)
    assert library.problem() == "it cannot be loaded (libtbb.so.12: cannot open shared object file)"


@pytest.mark.usefixtures("looked_for_anew")
def test_on_other_machines_it_is_left_alone(monkeypatch):
    monkeypatch.setattr(library.platform, "machine", lambda: "aarch64")
    assert "this machine is aarch64" in library.problem()


def test_reasons_are_told_without_places_in_the_source():
    error = RuntimeError("Exception from src/core.cpp:105:\nCheck 'false' failed at src/x.cpp:1:\n\n  no such thing\n")
    assert library.reason(error) == "no such thing"


IN_A_PROCESS_THAT_MAY_NOT_MAKE_CODE = """
import ctypes, sys
from pathlib import Path
from engines.engine import EngineSettings
from engines.opening import installed_backends, open_engine
from tests.support.bundles import make_bundle

if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) != 0:  # PR_SET_MDWE, from Linux 6.3 on
    sys.exit(77)
bundle = make_bundle(Path(sys.argv[1], "toy"), 16)
print(open_engine(bundle, EngineSettings(backend="auto", cache=sys.argv[1] + "/cache")).info.backend)
open_engine(bundle, EngineSettings(backend="openvino", cache=sys.argv[1] + "/cache"))
"""


@installed
def test_where_code_must_not_be_made_auto_takes_onnxruntime(tmp_path):
    """As in the station's unit, by MemoryDenyWriteExecute=; OpenVINO's own words would be "can't protect"."""
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS_THAT_MAY_NOT_MAKE_CODE, tmp_path],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip("this kernel has no PR_SET_MDWE")
    assert done.stdout.splitlines()[-1] == "onnxruntime"
    assert "which cannot run here: OpenVINO cannot be used: it compiles code" in done.stderr
    assert "MemoryDenyWriteExecute=no" in done.stderr


@installed
def test_it_knows_the_cpu():
    assert "FP32" in library.capabilities()
    assert library.version().startswith("20")


@installed
def test_openvino_reports_to_nobody(tmp_path):
    """Its import alone would make a client id in the home directory and send an event."""
    code = (
        "from pathlib import Path; from tests.support.bundles import make_bundle;"
        "from engines.opening import open_engine; from engines.engine import EngineSettings;"
        f"bundle = make_bundle(Path({str(tmp_path / 'toy')!r}), 16);"
        f"settings = EngineSettings(backend='openvino', cache={str(tmp_path / 'cache')!r});"
        "open_engine(bundle, settings).score(bundle.selftest.patches);"
        "import openvino.tools.ovc as ovc; print(type(ovc.telemetry).__module__)"
    )
    home = tmp_path / "home"
    home.mkdir()
    # The reports stay away where CI is set.
    environment = {name: value for name, value in os.environ.items() if name != "CI" and not name.startswith("XDG_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        env={**environment, "HOME": str(home)},
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == "openvino.tools.ovc.telemetry_stub"
    assert list(home.rglob("*")) == []
