"""Plans in words."""

from collections import Counter

from rich.console import Console
from rich.markup import escape

from engines.cache import Broken, DeviceFacts, Entry, PlanFacts, PlanManifest
from engines.tensorrt.plans import NO_GPU


def print_plan(console: Console, entry: Entry) -> None:
    """All that is known of a plan, its inputs, outputs and layers."""
    manifest, inspection = entry.manifest, entry.manifest.inspection
    facts, device = manifest.facts, manifest.facts.device
    kinds = Counter(layer.kind for layer in inspection.layers)
    dtypes = sorted({dtype for layer in inspection.layers for dtype in layer.dtypes})
    rows = [
        ("plan", str(entry.path)),
        ("size", f"{manifest.plan_bytes:,} bytes, built in {manifest.build_seconds:.1f} s"),
        ("built by", f"{device.library} {device.version} for {_device(device)}"),
        ("from", f"{manifest.bundle_name}, graph sha256 {facts.scorer_sha256}"),
        ("precision", facts.precision),
        ("patches", _patches(inspection.patches)),
        *(
            (tensor.direction, f"{tensor.name} {tensor.dtype} ({', '.join(_size(n) for n in tensor.shape)})")
            for tensor in inspection.tensors
        ),
        ("layers", f"{len(inspection.layers)}: {', '.join(f'{n} {kind}' for kind, n in kinds.most_common())}"),
        ("data types", ", ".join(dtypes)),
        ("verdict", state(entry)),
    ]
    for name, value in rows:
        console.print(f"{name:<12}{escape(value)}")


def describe_plan(entry: Entry | Broken, here: DeviceFacts | None) -> str:
    """A plan in one line, as rich markup."""
    if isinstance(entry, Broken):
        return f"{entry.path.stem[:12]}  [red]not loaded: {escape(entry.reason)}[/]"
    manifest, facts = entry.manifest, entry.manifest.facts
    other = unusable(manifest, here)
    status = f"[yellow]not for this device: {escape(other)}[/]" if other else escape(state(entry))
    what = (
        f"{manifest.bundle_name}, {how_large(facts)}",
        f"{manifest.plan_bytes / 2**20:.1f} MiB, {manifest.built_at:%Y-%m-%d %H:%M} UTC",
        f"{facts.device.library} {facts.device.version} for {_device(facts.device)}",
    )
    return f"{entry.path.stem[:12]}  {escape(', '.join(what))}: {status}"


def how_large(facts: PlanFacts) -> str:
    """Precision, and what a plan is limited to."""
    return facts.precision if facts.max_patches is None else f"{facts.precision}, {facts.max_patches} patches"


def state(entry: Entry) -> str:
    """Whether the plan serves."""
    verdict = entry.manifest.verdict
    if verdict is None:
        return "not run yet"
    return f"{'serves' if verdict.accepted else 'refused'}: {verdict.words}"


def unusable(manifest: PlanManifest, here: DeviceFacts | None) -> str | None:
    """Why a plan cannot be used here, in words; None: it can, or without its library (``here`` None) nobody knows.

    Where no GPU is seen now (a driver that does not start, a workstation), plans of a GPU are no worse for it.
    """
    if here is None:
        return None
    device = manifest.facts.device
    if here.name == NO_GPU:
        here = here.model_copy(update={"name": device.name, "capability": device.capability})
    return device.difference(here)


def _device(device: DeviceFacts) -> str:
    return "no GPU in particular" if device.name == NO_GPU else f"{device.name} ({device.capability})"


def _patches(sizes: tuple[int, int, int] | None) -> str:
    if sizes is None:
        return "any number at once"
    least, best, most = sizes
    return f"{least} to {most} at once, best {best}; more run in turns"


def _size(n: int) -> str:
    return "N" if n < 0 else str(n)
