"""Plans for a bundle on this device: taken from the cache, or else built and kept there."""

import hashlib
import time
from datetime import datetime, timezone

import structlog

from engines.bundle import Bundle
from engines.cache import MIB, DeviceFacts, Entry, PlanCache, PlanFacts, PlanManifest, open_cache
from engines.engine import EngineSettings, OnProgress, Precision, from_lowest
from engines.errors import BackendError
from engines.manifest import Manifest
from engines.tensorrt import gpu, library
from engines.tensorrt.builder import BuildOptions, build_plan
from engines.tiling import Tiler

log = structlog.get_logger(__name__)

NO_GPU = "none"
DEFAULT_PATCHES = 64
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")

# Activations take at most 64 bytes per pixel and unit of width (engines/ort.py), so this keeps them below 1 GiB.
MAX_PIXELS_TIMES_WIDTH = 2**24


def describe_device() -> DeviceFacts:
    """The library and the GPU that plans are built for here; without a GPU, ``none``.

    Raises:
        BackendError: no TensorRT.
    """
    try:
        found = gpu.describe_gpu()
    except BackendError:
        name, capability = NO_GPU, NO_GPU
    else:
        name, capability = found.name, ".".join(map(str, found.compute_capability))
    return DeviceFacts(library=library.name(), version=library.version(), name=name, capability=capability)


def find_graph(bundle: Bundle, precision: Precision) -> bytes | None:
    """The graph to build this precision from; None: the bundle has none that this TensorRT could use."""
    if precision == "fp16" and not library.typed_by_graph():
        return bundle.scorer
    return bundle.variant(precision)


def buildable(bundle: Bundle, lowest: Precision) -> list[Precision]:
    """Precisions from ``lowest`` upwards that the bundle has a graph for; others are told in the log. fp32 is one."""
    wanted = from_lowest(lowest, PRECISIONS)
    found = [precision for precision in wanted if find_graph(bundle, precision) is not None]
    for missing in (precision for precision in wanted if precision not in found):
        log.warning(
            "the bundle has no graph for this precision; the next higher one is taken",
            precision=missing,
            way_out=f"station-train export --precision {missing}",
        )
    return found


def in_turns(manifest: Manifest, n: int) -> int:
    """How many patches a plan takes at once for frames of ``n``: all, or in equal turns if memory asks for it."""
    pixels = manifest.preprocessing.patch_size**2
    most = max(1, MAX_PIXELS_TIMES_WIDTH // (pixels * manifest.network.width))
    return -(-n // -(-n // most))


def patches_at_once(manifest: Manifest, settings: EngineSettings) -> int:
    """How many patches a new plan is built for."""
    if settings.max_patches is not None:
        return settings.max_patches
    size = manifest.preprocessing.frame_size
    return in_turns(manifest, Tiler(manifest.preprocessing).grid(size).n if size is not None else DEFAULT_PATCHES)


def obtain_plan(
    bundle: Bundle, settings: EngineSettings, precision: Precision, on_progress: OnProgress, *, rebuild: bool = False
) -> tuple[bytes, Entry]:
    """A plan from the cache, or else a new one, which then is in the cache. It is not loaded and not judged here.

    Args:
        bundle: a verified bundle that has a graph for ``precision``.
        settings: ``max_patches``, ``workspace_mib`` and ``cache`` are followed.
        precision: what to compute in.
        on_progress: told how a build gets on.
        rebuild: build even if there is a plan.

    Raises:
        BackendError: the build failed, the bundle has no such graph, or the cache cannot be trusted.
    """
    graph = find_graph(bundle, precision)
    if graph is None:
        raise BackendError(
            f"{bundle.path}: has no graph for {precision}, which {library.name()} {library.version()} needs; export "
            f"the bundle again with `station-train export --precision {precision}`, or choose engine.precision fp32"
        )
    plans, device = open_cache(settings), describe_device()
    options = BuildOptions(precision, patches_at_once(bundle.manifest, settings), settings.workspace_mib * MIB)
    facts = PlanFacts(
        scorer_sha256=hashlib.sha256(graph).hexdigest(),
        device=device,
        precision=precision,
        max_patches=options.max_patches,
        workspace_mib=settings.workspace_mib,
    )

    def build() -> tuple[bytes, PlanManifest]:
        log.info(
            "building a TensorRT plan",
            bundle=bundle.manifest.name,
            precision=precision,
            patches=facts.max_patches,
            gpu=device.name,
        )
        started = time.monotonic()
        tensors = (bundle.manifest.inputs, bundle.manifest.outputs)
        built = build_plan(graph, tensors, options, on_progress, plans.load_timings(device))
        seconds = time.monotonic() - started
        if built.timings:
            plans.store_timings(device, built.timings)
        log.info("built", bytes=len(built.plan), seconds=round(seconds, 1))
        return built.plan, PlanManifest(
            facts=facts,
            bundle_name=bundle.manifest.name,
            bundle_sha256=bundle.digest,
            built_at=datetime.now(timezone.utc),
            build_seconds=round(seconds, 3),
            inspection=built.inspection,
        )

    wanted = [facts] if settings.max_patches is not None else _of_any_size(plans, facts)
    return plans.obtain(wanted, build, on_progress, rebuild=rebuild)


def _of_any_size(plans: PlanCache, facts: PlanFacts) -> list[PlanFacts]:
    """Plans that differ in their number of patches only, the newest first; if there is none, what was asked for."""
    manifests = [entry.manifest for entry in plans.entries() if isinstance(entry, Entry)]
    manifests.sort(key=lambda manifest: manifest.built_at, reverse=True)
    return [each.facts for each in manifests if each.facts.resized(facts) == facts] or [facts]
