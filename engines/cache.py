"""Plans on disk: what a back end makes of a graph for one device, TensorRT's serialized engine or OpenVINO's model.

A plan is code, or as good as: one that this cache did not write itself, as it now stands, is never handed out.

In the cache's folder::

    secret          32 random bytes, made on this device, readable by its owner only
    KEY.plan        the plan
    KEY.json        its :class:`PlanManifest`, with an HMAC of both under the secret
    KEY.timings     kernel times measured on this device: their HMAC, then what TensorRT wrote
    lock            held while building, so that two stations do not build the same plan at once

KEY is a hash of everything that a plan depends on, so another device, another version of the library or a changed
bundle looks for another file.
"""

import fcntl
import hashlib
import hmac
import json
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field

from engines.engine import EngineSettings, OnProgress, Precision
from engines.errors import BackendError, PlanError
from engines.files import open_regular, write_whole

log = structlog.get_logger(__name__)

MIB = 2**20
SCHEMA_VERSION = 2
MAX_PLAN_BYTES = 2048 * MIB
MAX_MANIFEST_BYTES = 1 * MIB
MAX_TIMINGS_BYTES = 64 * MIB
_SECRET_BYTES = 32
_LOCK_POLL = 0.2  # seconds
_LEFT_BEHIND = 3600.0  # seconds; writing takes less than one


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DeviceFacts(_Model):
    """Where a plan runs: what it is bound to besides the graph."""

    library: str = Field(description="TensorRT, TensorRT-RTX or OpenVINO.")
    version: str = Field(description="Its full version.")
    name: str = Field(description="Name of the GPU or the CPU; 'none' where a plan was built without a GPU.")
    capability: str = Field(description="A GPU's compute capability, such as 8.7, or 'none'; what a CPU computes in.")

    def difference(self, other: "DeviceFacts") -> str | None:
        """How ``other`` differs, in words; None: a plan of one is good for the other."""
        changes = [
            f"{what} {mine}, here {its}"
            for what, mine, its in (
                ("library", f"{self.library} {self.version}", f"{other.library} {other.version}"),
                ("device", f"{self.name} ({self.capability})", f"{other.name} ({other.capability})"),
            )
            if mine != its
        ]
        return "; ".join(changes) or None


class PlanFacts(_Model):
    """All that decides what a plan is."""

    scorer_sha256: str = Field(description="sha256 of the ONNX graph that it was built from.")
    device: DeviceFacts
    precision: Precision
    max_patches: int | None = Field(default=None, description="Patches at once at most; null: any number.")
    workspace_mib: int | None = Field(default=None, description="Scratch memory of TensorRT's kernels.")

    def resized(self, other: "PlanFacts") -> "PlanFacts":
        """The same, but for as many patches as ``other``."""
        return self.model_copy(update={"max_patches": other.max_patches})

    @property
    def key(self) -> str:
        """Name of the plan's files, 32 hexadecimal digits."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:32]


class PlanTensor(_Model):
    """An input or output of a plan; -1 is the number of patches."""

    name: str
    direction: Literal["in", "out"]
    dtype: str
    shape: tuple[int, ...]


class PlanLayer(_Model):
    """A layer of a plan, most often one kernel made of several of the graph's nodes."""

    name: str
    kind: str
    dtypes: tuple[str, ...]


class Inspection(_Model):
    """What is in a plan, as its builder sees it; loading the plan, which may take a GPU, is not needed for it.

    Attributes:
        tensors: inputs and outputs.
        patches: smallest, best and largest number of patches at once; None: it was made for no number in particular.
        layers: the plan's layers as far as the builder tells; empty where TensorRT's log words them differently.
    """

    tensors: tuple[PlanTensor, ...]
    patches: tuple[int, int, int] | None = None
    layers: tuple[PlanLayer, ...]


class Verdict(_Model):
    """What the accuracy gate found when the plan first ran."""

    accepted: bool
    selftest_error: float | None = None
    rank_correlation: float | None = None
    words: str


class PlanManifest(_Model):
    """What a plan is; beside it on disk."""

    schema_version: int = Field(default=SCHEMA_VERSION, ge=SCHEMA_VERSION, le=SCHEMA_VERSION)
    facts: PlanFacts
    bundle_name: str
    bundle_sha256: str
    built_at: datetime
    build_seconds: float
    inspection: Inspection
    verdict: Verdict | None = Field(default=None, description="null: has not run yet.")
    plan_bytes: int = 0
    mac: str = Field(
        default="", description="HMAC-SHA256 of the rest of this manifest and of the plan; store() makes it."
    )


@dataclass(frozen=True, slots=True)
class Entry:
    """A plan in the cache that is as it was written."""

    manifest: PlanManifest
    path: Path


@dataclass(frozen=True, slots=True)
class Broken:
    """A plan in the cache that must not be loaded."""

    path: Path
    reason: str


def open_cache(settings: EngineSettings) -> "PlanCache":
    """The cache that the settings name."""
    return PlanCache(settings.cache or default_folder())


def default_folder() -> Path:
    """Where plans are unless engine.cache says otherwise: systemd's CacheDirectory=, else the user's cache."""
    if given := os.environ.get("CACHE_DIRECTORY"):
        return Path(given.split(":")[0]) / "engines"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cbigan-station" / "engines"


class PlanCache:
    """The plans of one device and one user.

    Args:
        folder: where they are; made when first written to.

    Raises:
        BackendError: the folder or the secret could have been changed by somebody else; from every method.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, facts: PlanFacts) -> tuple[bytes, Entry] | None:
        """The plan of these facts, read once and verified, and what it is; None: there is none.

        Raises:
            PlanError: altered, cut off, foreign, or writable by others.
        """
        self._folder()
        path = self._plan(facts.key)
        if not path.exists() and not path.with_suffix(".json").exists():
            return None
        plan, manifest = self._read(path)
        return plan, Entry(manifest, path)

    def obtain(
        self,
        wanted: Sequence[PlanFacts],
        build: Callable[[], tuple[bytes, PlanManifest]],
        on_progress: OnProgress,
        *,
        rebuild: bool = False,
    ) -> tuple[bytes, Entry]:
        """The first of the plans that may be loaded, or else a new one, which then is in the cache.

        Args:
            wanted: what would do, the best first.
            build: makes a plan; called by one process at a time.
            on_progress: told of waiting for another process.
            rebuild: build even if there is one.
        """
        if not rebuild and (found := self._find(wanted, tell=False)) is not None:
            return found
        with self.locked(lambda: on_progress("waiting for another process that builds", 0.0)):
            if not rebuild and (found := self._find(wanted, tell=True)) is not None:
                return found
            plan, manifest = build()
            return plan, self.store(plan, manifest)

    def store(self, plan: bytes, manifest: PlanManifest) -> Entry:
        """Write a plan and its manifest, replacing what is there; a reader never meets half of one."""
        manifest = manifest.model_copy(update={"plan_bytes": len(plan)})
        fields = manifest.model_dump(mode="json")
        manifest = manifest.model_copy(update={"mac": _mac(self._secret(), fields, plan)})
        fields["mac"] = manifest.mac
        path = self._plan(manifest.facts.key)
        _write(path, plan)
        _write(path.with_suffix(".json"), json.dumps(fields, indent=2).encode() + b"\n")
        return Entry(manifest, path)

    def entries(self) -> list[Entry | Broken]:
        """All plans, each read and verified, by name."""
        if not self.folder.is_dir():
            return []
        self._folder()
        paths = {path.with_suffix(".plan") for path in self.folder.iterdir() if _is_plan(path)}
        return [self._verify(path) for path in sorted(paths)]

    def remove(self, entry: Entry | Broken) -> None:
        """Delete a plan and its manifest."""
        entry.path.unlink(missing_ok=True)
        entry.path.with_suffix(".json").unlink(missing_ok=True)

    def load_timings(self, device: DeviceFacts) -> bytes:
        """Kernel times measured on this device; empty: none, or none that can be trusted."""
        path = self._timings(device)
        if not path.exists():
            return b""
        try:
            data = _read_own(path, MAX_TIMINGS_BYTES)
        except PlanError:
            return b""
        mac, timings = data[:32], data[32:]
        return timings if hmac.compare_digest(mac, self._timings_mac(path, timings)) else b""

    def store_timings(self, device: DeviceFacts, timings: bytes) -> None:
        """Keep kernel times for the next build."""
        path = self._timings(device)
        _write(path, self._timings_mac(path, timings) + timings)

    def remove_timings(self) -> None:
        """Forget all kernel times."""
        for path in self.folder.glob("*.timings"):
            path.unlink(missing_ok=True)

    @contextmanager
    def locked(self, on_wait: Callable[[], None]) -> Iterator[None]:
        """Be the only one to build. The lock falls when the process ends, however it ends.

        Args:
            on_wait: called again and again while another process builds; what it raises ends the waiting.
        """
        folder = self._folder()
        with os.fdopen(os.open(folder / "lock", os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    on_wait()
                    time.sleep(_LOCK_POLL)
            for part in folder.glob(".*.part"):  # of a process that was killed while writing
                if time.time() - part.stat().st_mtime > _LEFT_BEHIND:
                    part.unlink(missing_ok=True)
            yield

    def _find(self, wanted: Sequence[PlanFacts], *, tell: bool) -> tuple[bytes, Entry] | None:
        """The first that may be loaded; with ``tell``, why others may not goes into the log."""
        for facts in wanted:
            try:
                found = self.load(facts)
            except PlanError as error:
                if tell:
                    log.warning("a plan in the cache is not loaded", reason=str(error))
                continue
            if found is not None:
                return found
        return None

    def _plan(self, key: str) -> Path:
        return self.folder / f"{key}.plan"

    def _timings(self, device: DeviceFacts) -> Path:
        return self.folder / f"{hashlib.sha256(device.model_dump_json().encode()).hexdigest()[:32]}.timings"

    def _timings_mac(self, path: Path, timings: bytes) -> bytes:
        return hmac.digest(self._secret(), path.name.encode() + b"\0" + timings, "sha256")

    def _verify(self, path: Path) -> Entry | Broken:
        try:
            return Entry(self._read(path)[1], path)
        except PlanError as error:
            return Broken(path, str(error))

    def _read(self, path: Path) -> tuple[bytes, PlanManifest]:
        self._folder()
        secret = self._secret()
        text = _read_own(path.with_suffix(".json"), MAX_MANIFEST_BYTES)
        plan = _read_own(path, MAX_PLAN_BYTES)
        try:
            fields = json.loads(text)
            manifest = PlanManifest.model_validate(fields)
        except (ValueError, RecursionError) as error:  # pydantic's ValidationError is a ValueError
            raise PlanError(f"{path.with_suffix('.json')}: was altered, or is another version's") from error
        if len(plan) != manifest.plan_bytes:
            raise PlanError(f"{path}: has {len(plan):,} bytes, was built with {manifest.plan_bytes:,}")
        if not hmac.compare_digest(_mac(secret, fields, plan).encode(), manifest.mac.encode()):
            raise PlanError(f"{path}: was altered, or was built by another device or user")
        if manifest.facts.key != path.stem:
            raise PlanError(f"{path}: is not the plan that its name says; it was renamed")
        return plan, manifest

    def _folder(self) -> Path:
        """The folder, made if need be; nobody else may put files there."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            status = self.folder.stat()
        except OSError as error:
            raise BackendError(
                f"{self.folder}: the engine cache cannot be used: {error.strerror}; set engine.cache to a folder that "
                "may be written"
            ) from error
        if problem := _not_only_ours(status, 0o022):
            raise BackendError(
                f"{self.folder}: {problem}, so somebody else could put plans there, which are code; set engine.cache "
                "to a folder of your own (`chmod go-w` helps if it is yours)"
            )
        return self.folder

    def _secret(self) -> bytes:
        path = self._folder() / "secret"
        if not path.exists():
            # Of two processes that do this at once the second wins, and the first's plan is built once more.
            _write(path, secrets.token_bytes(_SECRET_BYTES))
        try:
            secret = _read_own(path, _SECRET_BYTES, others=0o077)
        except PlanError as error:
            raise BackendError(f"{error}; delete it, and all plans are built anew") from error
        if len(secret) != _SECRET_BYTES:
            raise BackendError(f"{path}: is damaged; delete it, and all plans are built anew")
        return secret


def _is_plan(path: Path) -> bool:
    return path.suffix in (".plan", ".json") and not path.name.startswith(".")


def _mac(secret: bytes, fields: Mapping[str, object], plan: bytes) -> str:
    """HMAC of the manifest's fields, as they are on disk, and of the plan."""
    text = json.dumps({name: value for name, value in fields.items() if name != "mac"}, sort_keys=True)
    mac = hmac.new(secret, text.encode() + b"\0", "sha256")
    mac.update(plan)
    return mac.hexdigest()


def _not_only_ours(status: os.stat_result, others: int) -> str | None:
    """Why a file or folder cannot be trusted; ``others``: permissions that nobody else may have."""
    if status.st_uid != os.geteuid():
        return f"belongs to user {status.st_uid}, not to {os.geteuid()}"
    if status.st_mode & others:
        return f"has mode {stat.S_IMODE(status.st_mode):04o}"
    return None


def _read_own(path: Path, limit: int, others: int = 0o022) -> bytes:
    """Read a file once, if it is a plain one of ours that nobody else can write."""
    try:
        with open(path, "rb", opener=open_regular) as file:  # Path.open takes no opener
            if problem := _not_only_ours(os.fstat(file.fileno()), others):
                raise PlanError(f"{path}: {problem}: somebody else could have changed it")
            data = file.read(limit + 1)
    except OSError as error:
        raise PlanError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise PlanError(f"{path}: larger than the {limit:,} bytes allowed")
    return data


def _write(path: Path, data: bytes) -> None:
    try:
        write_whole(path, data, mode=0o600)
    except OSError as error:
        raise BackendError(
            f"{path}: cannot be written: {error.strerror}; set engine.cache to another folder"
        ) from error
