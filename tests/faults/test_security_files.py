"""No way in by the disk: a hostile bundle, calibration or image is refused before anything of it is used."""

import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from onnx import TensorProto, helper

from engines.bundle import read_bundle
from tests.faults.conftest import Fault
from tests.support.bundles import GREY, make_bundle, toy_scorer
from tests.support.calibrations import make_calibration
from tests.support.mosquitto import HOST, free_port
from tests.support.station_process import station

pytestmark = pytest.mark.e2e


def replace_file(bundle: Path, name: str, data: bytes) -> None:
    """With the right hash: whoever can write the bundle can write its manifest."""
    (bundle / name).write_bytes(data)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = hashlib.sha256(data).hexdigest()
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def endless_loop(folder: Path) -> None:
    model = toy_scorer(32)
    body = helper.make_graph([helper.make_node("Abs", ["v"], ["w"])], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["turns", "go", "v"], ["w"], body=body))
    replace_file(folder / "bundle", "scorer.onnx", model.SerializeToString())


def weights_of_another_file(folder: Path) -> None:
    model = toy_scorer(32)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"
    replace_file(folder / "bundle", "scorer.onnx", model.SerializeToString())


def link_out(folder: Path) -> None:
    (folder / "bundle/MODEL_CARD.md").unlink()
    (folder / "bundle/MODEL_CARD.md").symlink_to("/etc/passwd")


def name_out(folder: Path) -> None:
    manifest = json.loads((folder / "bundle/manifest.json").read_text())
    manifest["files"]["../../../etc/passwd"] = "0" * 64
    (folder / "bundle/manifest.json").write_text(json.dumps(manifest))


def pickled_selftest(folder: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, patches=np.array([print], dtype=object))
    replace_file(folder / "bundle", "selftest.npz", buffer.getvalue())


def zip_bomb(folder: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("patches.npy", bytes(2**26))
    replace_file(folder / "bundle", "selftest.npz", buffer.getvalue())


def threshold_not_a_number(folder: Path) -> None:
    calibration = make_calibration(read_bundle(folder / "bundle")).model_dump(mode="json", by_alias=True)
    (folder / "calibration.json").write_text(json.dumps(calibration | {"threshold": float("nan")}))
    config = folder / "station.toml"
    config.write_text('calibration = "calibration.json"\n' + config.read_text().replace("threshold = 40", ""))


def huge_image(folder: Path) -> None:
    """Some hundred bytes that ask the decoder for 2.7 GB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    (folder / "frames/1.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (endless_loop, "uses the operator 'Loop'"),
        (weights_of_another_file, "keeps weights in another file"),
        (link_out, "is a link out of the bundle"),
        (name_out, "is not a plain file name"),
        (pickled_selftest, "selftest.npz: not a self-test"),
        (zip_bomb, "unpacks to more than its"),
        (threshold_not_a_number, "threshold"),
        (huge_image, "30000 x 30000 pixels"),
    ],
)
def test_hostile_files_are_refused(tmp_path: Path, attack: Callable[[Path], None], words: str, fault: Fault) -> None:
    fault.injected = f"station run with: {attack.__name__.replace('_', ' ')}"
    fault.expected = "refused in words, exit code 1, no traceback"
    make_bundle(tmp_path / "bundle")
    (tmp_path / "frames").mkdir()
    assert cv2.imwrite(str(tmp_path / "frames/0.png"), np.full((96, 128, 3), GREY, np.uint8))
    (tmp_path / "station.toml").write_text(
        f"""
        bundle = "bundle"
        [camera]
        url = "folder:frames"
        [judge]
        threshold = 40
        [mqtt]
        host = "{HOST}"
        port = {free_port()}
        """
    )
    attack(tmp_path)
    done = station("run", "--config", tmp_path / "station.toml", timeout=240)
    said, page = done.stderr.strip().splitlines()[-2:]
    fault.seen = f"exit code {done.returncode}: {said.replace(str(tmp_path), '…')[:150]}"
    assert done.returncode == 1
    assert words in said
    assert page.startswith("see docs/errors.md#")
    assert "Traceback" not in done.stderr
