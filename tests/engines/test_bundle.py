import hashlib
import io
import json
import os
import zipfile
from contextlib import suppress

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines import bundle as bundle_module
from engines.bundle import ExpectedScores, SelfTest, pack_calibration, read_bundle, write_bundle
from engines.errors import BundleError
from engines.manifest import Preprocessing
from tests.support.bundles import make_bundle, make_description, make_selftest, toy_scorer

PATCH = 16


@pytest.fixture
def toy(tmp_path):
    return make_bundle(tmp_path / "toy", PATCH)


def change_manifest(path, change, *, rehash=()):
    """Apply ``change`` to the parsed manifest; ``rehash`` names files whose new sha256 is put in first."""
    file = path / "manifest.json"
    manifest = json.loads(file.read_text())
    for name in rehash:
        manifest["files"][name] = hashlib.sha256((path / name).read_bytes()).hexdigest()
    change(manifest)
    file.write_text(json.dumps(manifest))


def replace_selftest(path, data):
    (path / "selftest.npz").write_bytes(data)
    change_manifest(path, lambda manifest: None, rehash=["selftest.npz"])


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def selftest_arrays():
    selftest = make_selftest(PATCH)
    expected = selftest.expected
    return {
        "patches": selftest.patches,
        "reconstruction_error": expected.reconstruction_error,
        "feature_error": expected.feature_error,
        "residual": expected.residual,
    }


def test_what_was_written_is_read(toy):
    read = read_bundle(toy.path)
    assert read.manifest == toy.manifest
    assert read.manifest.preprocessing.patch_size == PATCH
    assert read.manifest.lambda_ == 0.1
    assert read.digest == hashlib.sha256((toy.path / "manifest.json").read_bytes()).hexdigest()
    assert read.scorer == toy_scorer(PATCH).SerializeToString()
    assert set(read.files) == {"scorer.onnx", "selftest.npz", "MODEL_CARD.md"}
    selftest = make_selftest(PATCH)
    np.testing.assert_array_equal(read.selftest.patches, selftest.patches)
    np.testing.assert_array_equal(read.selftest.expected.residual, selftest.expected.residual)
    assert read.selftest.expected.residual.dtype == np.float64


def test_the_manifest_calls_lambda_by_its_name(toy):
    raw = json.loads((toy.path / "manifest.json").read_text())
    assert raw["lambda"] == 0.1
    assert raw["schema_version"] == 1


def test_equal_bundles_have_equal_digests(tmp_path, toy):
    assert make_bundle(tmp_path / "again", PATCH).digest == toy.digest
    assert make_bundle(tmp_path / "other", PATCH, grey=100).digest != toy.digest


@pytest.mark.parametrize("name", ["scorer.onnx", "selftest.npz", "MODEL_CARD.md"])
def test_one_changed_bit_is_noticed(toy, name):
    data = bytearray((toy.path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (toy.path / name).write_bytes(data)
    with pytest.raises(BundleError, match=rf"{name}: its sha256 is .* the bundle was altered or not copied completely"):
        read_bundle(toy.path)


@pytest.mark.parametrize("name", ["scorer.onnx", "selftest.npz", "MODEL_CARD.md"])
def test_a_truncated_file_is_noticed(toy, name):
    os.truncate(toy.path / name, 10)
    with pytest.raises(BundleError, match=rf"{name}: .*copy it again"):
        read_bundle(toy.path)


@pytest.mark.parametrize("name", ["manifest.json", "scorer.onnx", "selftest.npz", "MODEL_CARD.md"])
def test_a_missing_file_is_noticed(toy, name):
    (toy.path / name).unlink()
    with pytest.raises(BundleError, match=rf"{name}: missing: .*copy it again"):
        read_bundle(toy.path)


def test_a_truncated_manifest_is_noticed(toy):
    os.truncate(toy.path / "manifest.json", 100)
    with pytest.raises(BundleError, match=r"manifest\.json: not JSON .*copy it again"):
        read_bundle(toy.path)


def test_no_bundle_at_all(tmp_path):
    with pytest.raises(BundleError, match=r"nowhere: no such bundle; `station-train export` writes one"):
        read_bundle(tmp_path / "nowhere")


def test_a_newer_schema_is_told_before_its_unknown_fields(toy):
    change_manifest(toy.path, lambda manifest: manifest.update(schema_version=2, whatever="new", files={"a": 1}))
    with pytest.raises(
        BundleError, match=r"schema_version 2 is newer than 1.*a newer version of cbigan-station is needed"
    ):
        read_bundle(toy.path)


@pytest.mark.parametrize("version", ["1", None, True, 1.0])
def test_a_manifest_without_a_schema_version_is_none(toy, version):
    change_manifest(toy.path, lambda manifest: manifest.update(schema_version=version))
    with pytest.raises(BundleError, match="has no schema_version"):
        read_bundle(toy.path)


@pytest.mark.parametrize("text", ["[]", "7", "[" * 100_000, "\udcff"])
def test_json_that_is_no_manifest(toy, text):
    (toy.path / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(BundleError, match=r"manifest\.json: "):
        read_bundle(toy.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(surprise=1), "surprise: Extra inputs are not permitted"),
        (lambda m: m.pop("alpha"), "alpha: Field required"),
        (lambda m: m.update({"lambda": 2}), "lambda: Input should be less than or equal to 1"),
        (lambda m: m["preprocessing"].update(stride=99), "stride 99 > patch_size 16 would leave pixels uninspected"),
        (lambda m: m["files"].update({"../../etc/passwd": "0" * 64}), "is not a plain file name"),
        (lambda m: m["files"].pop("scorer.onnx"), r"scorer\.onnx is not listed"),
        (lambda m: m["outputs"][2].update(shape=[-1, 8, 8]), "not those of a scorer of 16 x 16 patches"),
        (lambda m: m.update(created_at="2024-01-01T00:00:00+02:00"), "created_at must be in UTC"),
        (lambda m: m.update(schema_version=0), "schema_version: Input should be 1"),
    ],
)
def test_manifests_that_are_not_valid_name_the_key(toy, change, message):
    change_manifest(toy.path, change)
    with pytest.raises(BundleError, match=message):
        read_bundle(toy.path)


@pytest.mark.parametrize(
    ("name", "constant"), [("manifest.json", "MAX_MANIFEST_BYTES"), ("MODEL_CARD.md", "MAX_OTHER_FILE_BYTES")]
)
def test_files_that_are_too_large_are_refused(toy, monkeypatch, name, constant):
    monkeypatch.setattr(bundle_module, constant, 20)
    with pytest.raises(BundleError, match=rf"{name}: larger than"):
        read_bundle(toy.path)


def test_all_files_together_are_bounded(toy, monkeypatch):
    monkeypatch.setattr(bundle_module, "MAX_BUNDLE_BYTES", sum(len(data) for data in toy.files.values()) - 1)
    with pytest.raises(BundleError, match="larger than"):
        read_bundle(toy.path)


def test_a_link_out_of_the_bundle_is_refused(toy, tmp_path):
    scorer = toy.path / "scorer.onnx"
    scorer.rename(tmp_path / "elsewhere.onnx")
    scorer.symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(BundleError, match=r"scorer\.onnx: is a link out of the bundle"):
        read_bundle(toy.path)


def test_a_link_inside_the_bundle_and_one_to_it_are_fine(toy, tmp_path):
    (toy.path / "scorer.onnx").rename(toy.path / "v2.onnx")
    (toy.path / "scorer.onnx").symlink_to("v2.onnx")
    (tmp_path / "current").symlink_to(toy.path)
    assert read_bundle(tmp_path / "current").digest == toy.digest


def test_links_in_a_circle_are_refused(toy):
    (toy.path / "scorer.onnx").unlink()
    (toy.path / "scorer.onnx").symlink_to("scorer.onnx")
    with pytest.raises(BundleError, match=r"scorer\.onnx: cannot be read"):
        read_bundle(toy.path)


def test_a_pipe_or_a_folder_instead_of_a_file_is_refused(toy):
    scorer = toy.path / "scorer.onnx"
    scorer.unlink()
    os.mkfifo(scorer)
    with pytest.raises(BundleError, match="not a regular file"):
        read_bundle(toy.path)
    scorer.unlink()
    scorer.mkdir()
    with pytest.raises(BundleError, match="not a regular file"):
        read_bundle(toy.path)


def test_files_that_the_manifest_does_not_list_are_not_read(toy):
    (toy.path / "notes.txt").write_text("mine")
    assert "notes.txt" not in read_bundle(toy.path).files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"residual": None}, "residual"),
        ({"patches": np.zeros((15, PATCH, PATCH, 3), np.uint8)}, "patches is"),
        ({"patches": np.zeros((16, PATCH, PATCH, 3), np.float32)}, "patches unpacks to more|patches is"),
        ({"feature_error": np.zeros(16, np.float32)}, "feature_error is"),
        ({"feature_error": np.zeros(16, ">f8")}, "feature_error is"),
        ({"residual": np.asfortranarray(np.zeros((16, PATCH, PATCH)))}, "residual is"),
        ({"residual": np.zeros((16, 200, 200))}, "residual unpacks to more than its 32768 bytes"),
        ({"feature_error": np.array([object()] * 16)}, "feature_error is"),
        ({"feature_error": np.zeros(15)}, "feature_error is .*(15,)"),
        ({"feature_error": np.full(16, np.nan)}, "feature_error holds NaN"),
        ({"reconstruction_error": np.full(16, np.inf)}, "reconstruction_error holds NaN or infinity"),
    ],
)
def test_self_tests_of_another_form_are_refused(toy, change, message):
    arrays = {name: array for name, array in {**selftest_arrays(), **change}.items() if array is not None}
    replace_selftest(toy.path, npz(**arrays))
    with pytest.raises(BundleError, match=rf"selftest\.npz: .*({message})"):
        read_bundle(toy.path)


def test_a_zip_that_lies_about_its_size_unpacks_no_more_than_it_says(toy):
    # 64 MiB of zeros, declared as the few bytes that are expected.
    arrays = selftest_arrays()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            entry = io.BytesIO()
            np.lib.format.write_array(entry, array)
            payload = entry.getvalue() + (b"\0" * 2**26 if name == "residual" else b"")
            archive.writestr(f"{name}.npy", payload)
            if name == "residual":
                archive.getinfo("residual.npy").file_size = len(entry.getvalue())
    replace_selftest(toy.path, buffer.getvalue())
    with pytest.raises(BundleError, match=r"selftest\.npz: not a self-test"):
        read_bundle(toy.path)


def test_an_archive_of_a_million_nothings_is_refused_before_it_is_listed(toy):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(65):
            archive.writestr(f"{number}.npy", b"")
    replace_selftest(toy.path, buffer.getvalue())
    with pytest.raises(BundleError, match=r"selftest\.npz: not a self-test: the archive has more than 64 entries"):
        read_bundle(toy.path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"'shape': (16,)", b"'shape': (__import__('os'),)"),
        (b"'shape': (16,)", b"'shape': (10**12,)"),
        (b"\x93NUMPY\x01", b"\x93NUMPY\x03"),
    ],
)
def test_headers_are_compared_and_never_evaluated(toy, old, new):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in selftest_arrays().items():
            entry = io.BytesIO()
            np.lib.format.write_array(entry, array)
            archive.writestr(f"{name}.npy", entry.getvalue().replace(old, new))
    replace_selftest(toy.path, buffer.getvalue())
    with pytest.raises(BundleError, match=r"selftest\.npz: not a self-test: .* is "):
        read_bundle(toy.path)


GOOD_NPZ = npz(**selftest_arrays())


@given(st.data())
def test_damaged_self_tests_end_in_a_bundle_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "selftest.npz"
    damaged = bytearray(GOOD_NPZ)
    # The structures are at both ends of the archive; in the middle there is compressed data.
    position = st.one_of(
        st.integers(0, 300), st.integers(len(damaged) - 600, len(damaged) - 1), st.integers(0, len(damaged) - 1)
    )
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(position)] = data.draw(st.integers(0, 255))
    manifest = make_description(Preprocessing(colour="rgb", patch_size=PATCH, stride=PATCH))
    with suppress(BundleError):  # any other error fails the test
        parsed = bundle_module._parse_selftest(path, bytes(damaged), manifest)
        assert parsed.patches.shape == (16, PATCH, PATCH, 3)


def write(path, selftest=None, **kwargs):
    description = make_description(Preprocessing(colour="rgb", patch_size=PATCH, stride=PATCH))
    scorer = toy_scorer(PATCH).SerializeToString()
    return write_bundle(path, description, scorer, selftest or make_selftest(PATCH), "# Card", **kwargs)


def test_extras_are_covered_by_the_manifest(tmp_path):
    written = write(tmp_path / "b", extras={"curves.png": b"picture"})
    assert written.files["curves.png"] == b"picture"
    (tmp_path / "b" / "curves.png").write_bytes(b"Picture")
    with pytest.raises(BundleError, match=r"curves\.png: its sha256"):
        read_bundle(tmp_path / "b")


def calibration_patches(n=20, size=PATCH, dtype=np.uint8):
    return np.random.default_rng(n).integers(0, 256, (n, size, size, 3)).astype(dtype)


def test_graphs_for_other_precisions_and_calibration_patches_are_optional(tmp_path):
    plain = write(tmp_path / "plain")
    assert (plain.variant("fp32"), plain.variant("fp16"), plain.variant("int8")) == (plain.scorer, None, None)
    assert plain.calibration_patches() is None

    half = toy_scorer(PATCH, grey=100).SerializeToString()
    patches = calibration_patches()
    full = write(tmp_path / "full", extras={"scorer.fp16.onnx": half, "calibration.npz": pack_calibration(patches)})
    assert (full.variant("fp16"), full.variant("int8")) == (half, None)
    np.testing.assert_array_equal(full.calibration_patches(), patches)


@pytest.mark.parametrize("n", [1, 256])
def test_as_many_calibration_patches_as_there_are(tmp_path, n):
    patches = calibration_patches(n)
    bundle = write(tmp_path / "b", extras={"calibration.npz": pack_calibration(patches)})
    np.testing.assert_array_equal(bundle.calibration_patches(), patches)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no archive", "not a zip file"),
        (npz(images=np.zeros((4, PATCH, PATCH, 3), np.uint8)), "patches"),
        (pack_calibration(calibration_patches(257)), "holds 257 patches of 0 MiB, not 1 to 256"),
        (pack_calibration(calibration_patches(0)), "holds 0 patches"),
        (pack_calibration(calibration_patches(4, size=PATCH // 2)), r"not \"\{'descr': '\|u1', .*\(1, 16, 16, 3\)"),
        (pack_calibration(calibration_patches(4, dtype=np.float32)), r"'<f4'"),
    ],
)
def test_other_things_than_calibration_patches_are_not_written(tmp_path, data, message):
    with pytest.raises(BundleError, match=rf"calibration\.npz: not calibration patches: .*{message}"):
        write(tmp_path / "b", extras={"calibration.npz": data})
    assert list(tmp_path.iterdir()) == []


def test_calibration_patches_that_would_fill_the_memory_are_refused(tmp_path, monkeypatch):
    bundle = write(tmp_path / "b", extras={"calibration.npz": pack_calibration(calibration_patches(200))})
    monkeypatch.setattr(bundle_module, "MAX_OTHER_FILE_BYTES", 100_000)
    with pytest.raises(BundleError, match="holds 200 patches"):
        bundle.calibration_patches()


def test_a_variant_that_keeps_weights_elsewhere_is_refused(tmp_path):
    model = toy_scorer(PATCH)
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    with pytest.raises(BundleError, match=r"scorer\.int8\.onnx: .*external data"):
        write(tmp_path / "b", extras={"scorer.int8.onnx": model.SerializeToString()})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../evil", "not a plain file name"),
        ("scorer.onnx", "belongs to the bundle itself"),
        ("manifest.json", "belongs to the bundle itself"),
    ],
)
def test_extras_stay_in_their_place(tmp_path, name, message):
    with pytest.raises(BundleError, match=message):
        write(tmp_path / "b", extras={name: b"x"})
    assert list(tmp_path.iterdir()) == []


def test_writing_replaces_a_bundle_and_leaves_nothing_else(tmp_path):
    first = write(tmp_path / "b")
    second = make_bundle(tmp_path / "b", PATCH, name="second")
    assert second.digest != first.digest
    assert read_bundle(tmp_path / "b").manifest.name == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_bundle_of_a_newer_schema_can_be_replaced(toy):
    change_manifest(toy.path, lambda manifest: manifest.update(schema_version=2))
    assert write(toy.path).manifest.schema_version == 1


def test_an_empty_folder_may_become_a_bundle(tmp_path):
    (tmp_path / "b").mkdir()
    assert write(tmp_path / "b").path == tmp_path / "b"


@pytest.mark.parametrize("content", ["notes.txt", "manifest.json"])
def test_what_is_no_bundle_is_not_replaced(tmp_path, content):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / content).write_text("{}")
    with pytest.raises(BundleError, match="exists and is not a bundle; nothing was written"):
        write(tmp_path / "b")
    assert (tmp_path / "b" / content).read_text() == "{}"


def test_a_link_is_not_replaced(tmp_path, toy):
    (tmp_path / "link").symlink_to(toy.path)
    with pytest.raises(BundleError, match="exists and is not a bundle"):
        write(tmp_path / "link")


def test_parts_that_make_no_bundle_leave_the_old_one_alone(toy, tmp_path):
    good = make_selftest(PATCH)
    bad = SelfTest(
        good.patches,
        ExpectedScores(good.expected.reconstruction_error, good.expected.feature_error[:3], good.expected.residual),
    )
    with pytest.raises(BundleError, match="feature_error"):
        write(toy.path, selftest=bad)
    assert read_bundle(toy.path).digest == toy.digest
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_a_disk_that_fills_up_leaves_the_old_one_alone(toy, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(toy.path)
    assert read_bundle(toy.path).digest == toy.digest
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_repr_does_not_print_the_weights(toy):
    assert len(repr(toy)) < 3000
