"""The installer for a Jetson, on a system that is a double of JetPack's: its packages are empty ones, pip is real."""

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def installer():
    spec = importlib.util.spec_from_file_location("jetson_install", REPOSITORY / "deploy/jetson/install.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64", 36),
        ("# R38 (release), REVISION: 2.0", 38),
        ("", None),
    ],
)
def test_the_release_is_read(installer, text, release):
    assert installer.parse_release(text) == release


def test_jetpack_5_is_refused(installer, tmp_path):
    (tmp_path / "nv_tegra_release").write_text("# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref")
    with pytest.raises(installer.InstallError, match="R35 is older than R36"):
        installer.check_release(tmp_path / "nv_tegra_release")


def test_in_a_container_the_base_image_decides(installer, tmp_path):
    installer.check_release(tmp_path / "nv_tegra_release")


JETPACK_6 = {"numpy": "1.21.5", "cv2": "4.8.0", "gstreamer": True, "tensorrt": "10.3.0"}


def test_jetpack_6_is_used_as_it_is(installer):
    jetpack = installer.read_probe(JETPACK_6)
    assert (jetpack.opencv, jetpack.gstreamer, jetpack.tensorrt) == ("4.8.0", True, "10.3.0")
    assert installer.constraints(jetpack) == ["numpy<2"]


@pytest.mark.parametrize("opencv", [{"cv2": "4.6.0", "gstreamer": True}, {"cv2_error": "No module named 'cv2'"}])
def test_an_opencv_too_old_or_missing_comes_from_pip(installer, opencv, capsys):
    jetpack = installer.read_probe({"numpy": "1.26.4", "tensorrt": "11.4.1", **opencv})
    installer.describe(jetpack)
    assert jetpack.opencv is None
    assert installer.constraints(jetpack) == []
    assert "pip's is installed" in capsys.readouterr().out


def test_without_tensorrt_the_way_out_is_named(installer):
    with pytest.raises(installer.InstallError, match="apt-get install nvidia-jetpack"):
        installer.read_probe({"tensorrt_error": "No module named 'tensorrt'"})


def test_missing_tools_are_named_all_at_once(installer, tmp_path, monkeypatch):
    monkeypatch.setattr(installer.shutil, "which", lambda _: None)
    with pytest.raises(installer.InstallError, match=r"apt-get install nvidia-jetpack .*g\+\+"):
        installer.check_tools(tmp_path)


def write_wheel(folder, name, version, files, requires=()):
    """A wheel, by hand: nothing is built, so nothing is downloaded to build it with."""
    base = f"{name.replace('-', '_')}-{version}"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + "".join(f"{line}\n" for line in requires)
    with zipfile.ZipFile(folder / f"{base}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
        wheel.writestr(f"{base}.dist-info/METADATA", metadata)
        wheel.writestr(f"{base}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{base}.dist-info/RECORD", "")


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Doubles of what JetPack brings, seen by every Python, and of what pip would fetch."""
    packages, wheels = tmp_path / "system", tmp_path / "wheels"
    for name, text in {
        "cv2": "__version__ = '4.8.0'\ndef getBuildInformation():\n    return 'GStreamer:   YES (1.20.3)'\n",
        "tensorrt": "__version__ = '10.3.0'\n",
        "numpy": "__version__ = '1.21.5'\n",
    }.items():
        (packages / name).mkdir(parents=True)
        (packages / name / "__init__.py").write_text(text)
    wheels.mkdir()
    requires = [
        "Requires-Dist: opencv-python-headless>=4.8",
        "Provides-Extra: cuda",
        "Requires-Dist: pycuda>=2024.1; extra == 'cuda'",
    ]
    station = {
        "station_double.py": "def main():\n    print('station 1.0')\n",
        "cbigan_station-1.0.dist-info/entry_points.txt": "[console_scripts]\nstation = station_double:main\n",
    }
    write_wheel(wheels, "cbigan-station", "1.0", station, requires)
    write_wheel(wheels, "pycuda", "2026.1", {"pycuda/__init__.py": "", "pycuda/_driver.py": ""})
    monkeypatch.setenv("PYTHONPATH", str(packages))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return tmp_path


@pytest.mark.e2e
def test_it_installs_beside_jetpacks_packages_and_updates(installer, system, monkeypatch, capfd):
    monkeypatch.setattr(installer, "check_tools", lambda: None)
    prefix = system / "prefix"
    arguments = ["install.py", "--prefix", str(prefix), "--source", "cbigan-station"]
    monkeypatch.setattr(sys, "argv", arguments)
    for _ in range(2):
        installer.main()
    output = capfd.readouterr().out
    assert "OpenCV 4.8.0: the system's is used, with GStreamer" in output
    assert f"done: {prefix}/bin/station" in output
    assert (prefix / "constraints.txt").read_text() == "numpy<2\n"
    site_packages = installer.find_site_packages(prefix / "bin" / "python")
    assert not (site_packages / "cv2").exists()
    assert (site_packages / "pycuda").exists()
    assert "station 1.0" in output

    def pip_check():
        command = [prefix / "bin" / "python", "-m", "pip", "check"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    assert "No broken requirements" in pip_check()
    (stand_in,) = site_packages.glob("opencv_python_headless-*")
    shutil.rmtree(stand_in)
    assert "requires opencv-python-headless, which is not installed" in pip_check()  # what the stand-in is for


def test_check_installs_nothing(installer, system, monkeypatch, capsys):
    monkeypatch.setattr(installer, "check_tools", lambda: None)
    monkeypatch.setattr(sys, "argv", ["install.py", "--check", "--prefix", str(system / "prefix")])
    installer.main()
    assert "TensorRT 10.3.0" in capsys.readouterr().out
    assert not (system / "prefix").exists()


def test_a_container_is_built_from_what_the_checkout_has():
    lines = (REPOSITORY / "deploy/jetson/Containerfile").read_text().splitlines()
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY") and "--from" not in line]
    for path in (path for paths in copied for path in paths):
        assert (REPOSITORY / path).exists(), path
    assert not any("pip install" in line or "opencv-python" in line.replace("libopencv-python", "") for line in lines)
