"""The bundle: a directory with a trained scorer and everything needed to trust it. See docs/bundle.md."""

import hashlib
import io
import json
import math
import os
import secrets
import shutil
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from engines.engine import Precision, UInt8Array
from engines.errors import BundleError
from engines.files import open_regular
from engines.graph import refuse_untrusted_graph
from engines.manifest import (
    CALIBRATION_FILE,
    FP16_SCORER_FILE,
    INT8_SCORER_FILE,
    MANIFEST_FILE,
    MODEL_CARD_FILE,
    SCHEMA_VERSION,
    SCORER_FILE,
    SELFTEST_FILE,
    Description,
    Manifest,
)

MIB = 2**20
SELFTEST_PATCHES = 16
MAX_CALIBRATION_PATCHES = 256
SCORER_FILES: Mapping[Precision, str] = {"fp32": SCORER_FILE, "fp16": FP16_SCORER_FILE, "int8": INT8_SCORER_FILE}
# Far above what real bundles need (a width-64 scorer has 200 MiB), far below what would hurt a line device.
MAX_MANIFEST_BYTES = 1 * MIB
MAX_FILE_BYTES: Mapping[str, int] = dict.fromkeys(SCORER_FILES.values(), 512 * MIB)
MAX_OTHER_FILE_BYTES = 64 * MIB
MAX_BUNDLE_BYTES = 1024 * MIB

_COPY_AGAIN = "the bundle was altered or not copied completely; copy it again from where it was exported"
_NPY_MAGIC = b"\x93NUMPY\x01\x00"  # and its version, 1.0
_NPY_HEADER_BYTES = 4096
_MAX_ZIP_ENTRIES = 64
_ZIP_ENTRY = b"PK\x01\x02"  # starts each entry of an archive's directory
_BROKEN_NPZ = (  # what zipfile, zlib and numpy raise on damage
    ValueError,
    KeyError,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)

Float64Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ExpectedScores:
    """What an engine must return for the self-test's patches, computed by torch in float64.

    Attributes:
        reconstruction_error: float64 (16,), eq. 8.
        feature_error: float64 (16,), eq. 9.
        residual: float64 (16, P, P), 0..2.
        anomaly_map: float64 (16, P, P); None where the graph has no locator.
    """

    reconstruction_error: Float64Array
    feature_error: Float64Array
    residual: Float64Array
    anomaly_map: Float64Array | None = None


@dataclass(frozen=True, slots=True)
class SelfTest:
    """The self-test of a bundle.

    Attributes:
        patches: uint8 (16, P, P, 3).
        expected: what the scorer must return for them.
    """

    patches: UInt8Array
    expected: ExpectedScores


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose every byte was checked against the manifest.

    Attributes:
        path: the directory it came from.
        manifest: what it says about itself.
        digest: sha256 of ``manifest.json``; as the manifest holds the sha256 of every other file, it
            identifies the whole bundle.
        files: the contents of every file of the manifest, by name. Engines use these bytes and never open
            the files again: what was verified is what runs.
        selftest: parsed from ``selftest.npz``.
    """

    path: Path
    manifest: Manifest
    digest: str
    files: Mapping[str, bytes] = field(repr=False)
    selftest: SelfTest = field(repr=False)

    @property
    def scorer(self) -> bytes:
        """The ONNX graph, serialized."""
        return self.files[SCORER_FILE]

    def variant(self, precision: Precision) -> bytes | None:
        """The graph that computes in ``precision``, for engines whose types are the graph's; None: not in this bundle.

        The one for fp32 is :attr:`scorer`; it is what every other must score like. For bf16 there never is one: who
        computes in it takes fp32's.
        """
        name = SCORER_FILES.get(precision)
        return None if name is None else self.files.get(name)

    def calibration_patches(self) -> UInt8Array | None:
        """Patches of training images, uint8 (N, P, P, 3) with N up to 256; None: not in this bundle.

        Raises:
            BundleError: the file holds something else.
        """
        data = self.files.get(CALIBRATION_FILE)
        if data is None:
            return None
        return _parse_calibration(self.path / CALIBRATION_FILE, data, self.manifest.preprocessing.patch_size)


def read_bundle(path: Path) -> Bundle:
    """Read and verify a bundle. Files that the manifest does not list are ignored.

    Raises:
        BundleError: missing, incomplete, altered, too large or of a newer schema; says what is wrong and what
            to do.
    """
    if not path.is_dir():
        raise BundleError(f"{path}: no such bundle; `station-train export` writes one, a directory")
    text = _read_bounded(path, MANIFEST_FILE, MAX_MANIFEST_BYTES)
    manifest = _parse_manifest(path, text)
    files: dict[str, bytes] = {}
    room = MAX_BUNDLE_BYTES
    for name, sha256 in manifest.files.items():
        data = _read_bounded(path, name, min(room, MAX_FILE_BYTES.get(name, MAX_OTHER_FILE_BYTES)))
        room -= len(data)
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise BundleError(
                f"{path / name}: its sha256 is {found[:12]}…, the manifest says {sha256[:12]}…: {_COPY_AGAIN}"
            )
        files[name] = data
    name = SCORER_FILE
    try:
        for name in files.keys() & set(SCORER_FILES.values()):
            refuse_untrusted_graph(files[name])
    except BundleError as error:
        raise BundleError(f"{path / name}: {error}") from error
    return Bundle(
        path=path,
        manifest=manifest,
        digest=hashlib.sha256(text).hexdigest(),
        files=MappingProxyType(files),
        selftest=_parse_selftest(path / SELFTEST_FILE, files[SELFTEST_FILE], manifest),
    )


def write_bundle(
    path: Path,
    description: Description,
    scorer: bytes,
    selftest: SelfTest,
    model_card: str,
    extras: Mapping[str, bytes] = MappingProxyType({}),
) -> Bundle:
    """Write a bundle, and read it back before it appears under its name.

    It is written beside ``path`` and then renamed: whoever looks sees the old bundle, for a moment none, or
    the new one, never half of one.

    Args:
        path: directory to write; if it exists it must be a bundle (which is replaced) or empty.
        description: the manifest but for ``files``.
        scorer: the ONNX graph, serialized.
        selftest: patches and what the scorer must return for them.
        model_card: Markdown.
        extras: more files by name: graphs for other precisions, calibration patches, the model card's pictures.

    Raises:
        BundleError: something else is at ``path``, or the parts do not make a valid bundle.
    """
    if path.exists() and not _replaceable(path):
        raise BundleError(f"{path}: exists and is not a bundle; nothing was written. Choose another name")
    files = {
        SCORER_FILE: scorer,
        SELFTEST_FILE: _selftest_npz(selftest),
        MODEL_CARD_FILE: model_card.encode(),
    }
    if taken := sorted(extras.keys() & {*files, MANIFEST_FILE}):
        raise BundleError(f"extra file {taken[0]}: the name belongs to the bundle itself")
    files.update(extras)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
    try:
        manifest = Manifest.model_validate({**description.model_dump(by_alias=True), "files": hashes})
    except ValidationError as error:
        raise BundleError(f"{path}: {_explain(error)}") from error

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.parent / f".{path.name}.{secrets.token_hex(4)}.part"
    try:
        part.mkdir()
        for name, data in files.items():
            _write_synced(part / name, data)
        _write_synced(part / MANIFEST_FILE, manifest.model_dump_json(by_alias=True, indent=2).encode() + b"\n")
        _sync_folder(part)
        read_bundle(part).calibration_patches()  # the one file that reading does not look into
        _put_in_place(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return read_bundle(path)


def pack_calibration(patches: UInt8Array) -> bytes:
    """The bundle's ``calibration.npz``, from uint8 patches (N, P, P, 3)."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, patches=patches)
    return buffer.getvalue()


def _read_bounded(folder: Path, name: str, limit: int) -> bytes:
    """Read a file of the bundle, once, and no more than ``limit`` bytes of it."""
    path = folder / name
    try:
        real = path.resolve(strict=True)
        if not real.is_relative_to(folder.resolve()):
            raise BundleError(f"{path}: is a link out of the bundle to {real}; put the file itself there")
        with open(real, "rb", opener=open_regular) as file:  # Path.open takes no opener
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise BundleError(f"{path}: missing: {_COPY_AGAIN}") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise BundleError(f"{path}: cannot be read: {error}") from error
    if len(data) > limit:
        raise BundleError(f"{path}: larger than the {limit / MIB:.0f} MiB allowed; this is no exported bundle")
    return data


def _parse_manifest(folder: Path, text: bytes) -> Manifest:
    path = folder / MANIFEST_FILE
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not JSON ({error}): {_COPY_AGAIN}") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if isinstance(version, bool) or not isinstance(version, int):
        raise BundleError(f"{path}: has no schema_version, so this is no bundle of cbigan-station")
    # Before the strict validation, which would only complain of fields that it does not know.
    if version > SCHEMA_VERSION:
        raise BundleError(
            f"{path}: schema_version {version} is newer than {SCHEMA_VERSION}, the newest that this version "
            "knows; a newer version of cbigan-station is needed (pip install -U cbigan-station)"
        )
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        raise BundleError(f"{path}: {_explain(error)}; export the bundle again") from error


def _explain(error: ValidationError) -> str:
    """The first complaint in one line: which key, what is wrong."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    return f"{key + ': ' if key else ''}{first['msg']}"


def _selftest_arrays(manifest: Description) -> dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]]:
    """Shape and dtype of every array of ``selftest.npz``, by name: the graph's input and, in float64, its outputs."""
    n = SELFTEST_PATCHES
    return {
        **{tensor.name: ((n, *tensor.shape[1:]), np.dtype(np.uint8)) for tensor in manifest.inputs},
        **{tensor.name: ((n, *tensor.shape[1:]), np.dtype("<f8")) for tensor in manifest.outputs},
    }


def _selftest_npz(selftest: SelfTest) -> bytes:
    expected = {f.name: getattr(selftest.expected, f.name) for f in fields(ExpectedScores)}
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        patches=selftest.patches,
        **{name: array for name, array in expected.items() if array is not None},
    )
    return buffer.getvalue()


def _parse_selftest(path: Path, data: bytes, manifest: Description) -> SelfTest:
    try:
        with _open_archive(data) as archive:
            arrays = {
                name: _read_array(archive, name, shape, dtype)
                for name, (shape, dtype) in _selftest_arrays(manifest).items()
            }
    except _BROKEN_NPZ as error:
        raise BundleError(f"{path}: not a self-test: {error}; export the bundle again") from error
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise BundleError(f"{path}: {name} holds NaN or infinity; export the bundle again")
    patches = arrays.pop("patches").astype(np.uint8, copy=False)
    return SelfTest(
        patches, ExpectedScores(**{name: array.astype(np.float64, copy=False) for name, array in arrays.items()})
    )


def _parse_calibration(path: Path, data: bytes, patch_size: int) -> UInt8Array:
    shape = (patch_size, patch_size, 3)
    try:
        with _open_archive(data) as archive:
            size = archive.getinfo("patches.npy").file_size
            n = size // math.prod(shape)  # the header in front is shorter than one patch
            if not 1 <= n <= MAX_CALIBRATION_PATCHES or size > MAX_OTHER_FILE_BYTES:
                raise ValueError(f"holds {n} patches of {size / MIB:.0f} MiB, not 1 to {MAX_CALIBRATION_PATCHES}")
            return _read_array(archive, "patches", (n, *shape), np.dtype(np.uint8)).astype(np.uint8, copy=False)
    except _BROKEN_NPZ as error:
        raise BundleError(f"{path}: not calibration patches: {error}; export the bundle again") from error


def _open_archive(data: bytes) -> zipfile.ZipFile:
    """As zipfile, which would make an object of half a kilobyte for each of a million empty entries."""
    # By chance the mark is in compressed data once in four gigabytes.
    if data.count(_ZIP_ENTRY) > _MAX_ZIP_ENTRIES:
        raise ValueError(f"the archive has more than {_MAX_ZIP_ENTRIES} entries")
    return zipfile.ZipFile(io.BytesIO(data))


def _read_array(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: np.dtype[np.generic]
) -> NDArray[np.generic]:
    """Stricter than np.load: the header must be the one we know; nothing is evaluated, nothing larger is unpacked."""
    info = archive.getinfo(f"{name}.npy")
    size = math.prod(shape) * dtype.itemsize
    # ZipFile.read never yields more bytes than the archive's directory declares.
    if info.file_size > size + _NPY_HEADER_BYTES:
        raise ValueError(f"{name} unpacks to more than its {size} bytes")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} has an unknown compression")
    data = archive.read(info)
    start = len(_NPY_MAGIC) + 2 + int.from_bytes(data[len(_NPY_MAGIC) : len(_NPY_MAGIC) + 2], "little")
    header = data[len(_NPY_MAGIC) + 2 : start].decode("latin-1").strip()
    wanted = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    if not data.startswith(_NPY_MAGIC) or header != wanted:
        raise ValueError(f"{name} is {header[:200]!r}, not {wanted!r}")
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


def _replaceable(path: Path) -> bool:
    if not path.is_dir() or path.is_symlink():
        return False
    if not any(path.iterdir()):
        return True
    try:
        raw = json.loads(_read_bounded(path, MANIFEST_FILE, MAX_MANIFEST_BYTES))
    except (BundleError, ValueError, RecursionError):
        return False
    return isinstance(raw, dict) and {"schema_version", "files"} <= raw.keys()


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put_in_place(part: Path, path: Path) -> None:
    """Rename ``part`` to ``path``; a bundle that is there is moved aside first and removed at the end."""
    old: Path | None = None
    if path.exists():
        old = path.parent / f".{path.name}.{secrets.token_hex(4)}.old"
        path.rename(old)
    try:
        part.rename(path)
    except OSError:
        if old is not None:
            old.rename(path)
        raise
    _sync_folder(path.parent)
    if old is not None:
        shutil.rmtree(old)
