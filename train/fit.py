"""The training loop."""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, cast

import structlog
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from train import checkpoint, methods
from train.config import FitConfig
from train.cuda_graphs import Replayed
from train.data import TrainingImages
from train.errors import DivergedError
from train.losses import LocatorPlayer
from train.networks import Encoder, Generator, Locator, channels_last
from train.planting import Planted, plant, relight
from train.sampling import PatchSampler

log = structlog.get_logger()

RECORD_EVERY = 50  # steps between recorded losses; also how often a GPU is made to wait for one
CHECKPOINT_SECONDS = 60.0
RUNAWAY_PENALTY = 1e4  # (‖∇D‖ - 1)² this large means slopes of 100: D is no longer 1-Lipschitz in any sense


@dataclass(frozen=True)
class Progress:
    """What the loop reports after every step.

    Attributes:
        step: steps done, over all sittings of the run.
        seconds: time spent on them.
        fraction: share of the budget that is spent, 0..1.
        phase: name of the phase.
        losses: the losses last recorded (means over the steps between two records).
        recorded: whether ``losses`` are new.
    """

    step: int
    seconds: float
    fraction: float
    phase: str
    losses: dict[str, float]
    recorded: bool


@dataclass(frozen=True)
class Phase:
    """What a step does, by how much of the budget is spent."""

    name: str
    lr: float
    warm: bool
    locator_lr: float = 0.0


def phase_at(config: FitConfig, fraction: float) -> Phase:
    """The phase and learning rate when ``fraction`` (0..1) of the budget is spent.

    Warm start first: E and G learn to reconstruct images; then D and the latents' consistency join (docs/decisions).
    Where the method trains E last, it is the other way round. Each phase's rate falls on a cosine from its full value
    to ``final_lr`` of it.
    """
    encoder_last = methods.load(config.method).encoder_last
    first = 1 - config.warm_start if encoder_last else config.warm_start
    locator_lr = _cosine(config.locator_lr, config.final_lr, fraction)
    within = fraction / first if fraction < first else (fraction - first) / (1 - first) if first < 1 else 1.0
    if (fraction < first) != encoder_last:
        name = "encoder" if encoder_last else "warm start" if first < 1 else "reconstruction"
        return Phase(name, _cosine(config.warm_lr, config.final_lr, within), True, locator_lr)
    name = "adversarial" if config.alpha < 1 else "consistency"
    return Phase(name, _cosine(config.lr, config.final_lr, within), False, locator_lr)


def _cosine(lr: float, final: float, t: float) -> float:
    return lr * (final + (1 - final) * (1 + math.cos(math.pi * min(t, 1.0))) / 2)


def players_at(step: int, d_iter: int) -> tuple[bool, bool]:
    """Who trains in ``step`` (from 1) of the adversarial phase: (E and G, D).

    With ``d_iter`` 0 both, always. Else the authors' schedule: both in the first step, then ``d_iter`` steps of D for
    one of E and G (REFERENCE item 6).
    """
    if d_iter == 0 or step == 1:
        return True, True
    generator_turn = step % (d_iter + 1) == 0
    return generator_turn, not generator_turn


class Trainer:
    """Networks, optimizers and random numbers of one run; advances by one step at a time."""

    def __init__(self, config: FitConfig, data: TrainingImages, fabric: Fabric, *, record: bool = True) -> None:
        """Make the networks, with the weights that the run's seed gives.

        Args:
            config: settings of the run.
            data: its images.
            fabric: launched; decides on the device and its precision.
            record: on a single GPU, replay recorded steps (``train.cuda_graphs``).
        """
        self.config = config
        self.data = data
        self.fabric = fabric
        torch.manual_seed(config.seed)
        arch = config.architecture
        self.method = methods.load(config.method)
        encoder, generator = channels_last(self.method.encoder(arch)), channels_last(Generator(arch))
        critic = channels_last(self.method.critic(arch))
        self.encoder, self.generator, self.critic = encoder, generator, critic
        self.locator = channels_last(Locator(arch)) if config.locator else None
        self.ge_player, self.ge_optimizer = self._setup(
            self.method.ge_player(encoder, generator), betas=config.betas_ge, eps=config.adam_eps
        )
        self.d_player, self.d_optimizer = self._setup(
            self.method.d_player(critic), betas=config.betas_d, eps=config.adam_eps
        )
        if self.locator is not None:
            self.l_player, self.l_optimizer = self._setup(LocatorPlayer(self.locator))
        average = get_ema_multi_avg_fn(config.ema_decay)  # type: ignore[no-untyped-call]
        self.ema_encoder = AveragedModel(encoder, multi_avg_fn=average)
        self.ema_generator = AveragedModel(generator, multi_avg_fn=average)
        self.ema_locator = None if self.locator is None else AveragedModel(self.locator, multi_avg_fn=average)
        self.sampler = PatchSampler(
            data.images, arch.image_size, rotate=config.rotate, flip=config.flip, device=fabric.device
        )
        self.random = torch.Generator(fabric.device)
        self.step = 0
        self.adversarial_step = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []
        self.best_auroc: float | None = None
        if fabric.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # all steps have the same shapes
        self._record = record and fabric.device.type == "cuda" and fabric.world_size == 1
        self._steps: dict[tuple[bool, bool, bool], Callable[..., dict[str, Tensor]]] = {}

    def _setup(self, player: nn.Module, **adam: Any) -> tuple[Any, Any]:  # noqa: ANN401 - what Fabric returns
        """A player and its optimizer, on the device. The rate is set before every step."""
        on_gpu = self.fabric.device.type == "cuda"
        # As a tensor, because a recorded step reads it where it was.
        rate = torch.tensor(0.0, device=self.fabric.device) if on_gpu else 0.0
        optimizer = torch.optim.Adam(player.parameters(), lr=rate, fused=on_gpu, capturable=on_gpu, **adam)
        return self.fabric.setup(player, optimizer)

    @property
    def averaged(self) -> tuple[Encoder, Generator]:
        """E and G with averaged weights, which is what inference uses."""
        return cast("Encoder", self.ema_encoder.module), cast("Generator", self.ema_generator.module)

    @property
    def averaged_locator(self) -> Locator | None:
        """L with averaged weights, if the run has one."""
        return None if self.ema_locator is None else cast("Locator", self.ema_locator.module)

    def advance(self, phase: Phase) -> dict[str, Tensor]:
        """One training step; returns the losses it saw before updating, by name."""
        config, n = self.config, self.config.batch_size
        # The step alone decides on its random numbers, so that a run can be resumed exactly.
        stream = config.seed * 1_000_003 + self.fabric.global_rank
        self.random.manual_seed((stream * 2**32 + self.step) % 2**63)
        x = self.sampler.sample(n, self.random)
        z = torch.randn(n, config.latent_size, generator=self.random, device=self.random.device)
        eps = torch.rand(n, 1, generator=self.random, device=self.random.device)
        planted = plant(relight(x, self.random), self.random) if self.locator is not None else None
        self.step += 1
        train_ge, train_d = True, False
        if not phase.warm and config.alpha < 1.0:
            self.adversarial_step += 1
            train_ge, train_d = players_at(self.adversarial_step, config.d_iter)
        return self.update(x, z, eps, phase, planted, train_ge=train_ge, train_d=train_d)

    def update(
        self,
        x: Tensor,
        z: Tensor,
        eps: Tensor,
        phase: Phase,
        planted: Planted | None = None,
        *,
        train_ge: bool,
        train_d: bool,
    ) -> dict[str, Tensor]:
        """Update E and G, D, or both, from the losses at the weights before the step (as the authors' train_step).

        L is updated in every step that has ``planted`` defects for it.
        """
        _set_rate(self.ge_optimizer, phase.lr)
        _set_rate(self.d_optimizer, phase.lr)
        if planted is not None:
            _set_rate(self.l_optimizer, phase.locator_lr)
        patches, mask = (None, None) if planted is None else (planted.patches, planted.mask)
        kind = (phase.warm, train_ge, train_d)
        if kind not in self._steps:
            step = partial(self._descend, warm=phase.warm, train_ge=train_ge, train_d=train_d)
            self._steps[kind] = Replayed(step, self.fabric.device) if self._record else step
        losses = self._steps[kind](x, z, eps, patches, mask)
        if self.step % self.config.ema_every == 0:
            if train_ge:
                self.ema_encoder.update_parameters(self.encoder)
                self.ema_generator.update_parameters(self.generator)
            if planted is not None and self.ema_locator is not None and self.locator is not None:
                self.ema_locator.update_parameters(self.locator)
        return losses

    def _descend(
        self,
        x: Tensor,
        z: Tensor,
        eps: Tensor,
        patches: Tensor | None,
        mask: Tensor | None,
        *,
        warm: bool,
        train_ge: bool,
        train_d: bool,
    ) -> dict[str, Tensor]:
        """One step of every optimizer whose turn it is; the losses by name."""
        losses: dict[str, Tensor] = {}
        reconstruction: Tensor | None = None
        if train_ge:
            # D's weights take no part in this backward pass; its input gradient does.
            self.critic.requires_grad_(requires_grad=False)
            ge = self.ge_player(x, None if warm else z, self.config.alpha, self.critic, patches)
            self.critic.requires_grad_(requires_grad=True)
            reconstruction = ge.pop("reconstruction", None)
            losses |= {k: v for k, v in ge.items() if k != "total"}
        if train_d:
            with torch.no_grad(), self.fabric.autocast():
                encoded, generated = self.method.fakes(self.encoder, self.generator, x, z)
            d = self.d_player(x, encoded, generated, z, eps, self.config.gp_weight)
            losses |= {k: v for k, v in d.items() if k != "total"}
        if patches is not None:
            if reconstruction is None:
                with torch.no_grad(), self.fabric.autocast():
                    reconstruction = self.generator(self.encoder(patches))
            location = self.l_player(patches, reconstruction, mask)
            losses |= {k: v for k, v in location.items() if k != "total"}
        if train_ge:
            self._apply(self.ge_optimizer, ge["total"])
        if train_d:
            self._apply(self.d_optimizer, d["total"])
        if patches is not None:
            self._apply(self.l_optimizer, location["total"])
        return {k: v.detach() for k, v in losses.items()}

    def _apply(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        optimizer.step()

    def state(self) -> dict[str, Any]:
        """Everything that a checkpoint needs to go on exactly here."""
        state: dict[str, Any] = {
            "config": self.config.model_dump_json(by_alias=True),
            "colour": self.data.colour,
            "images": [str(p) for p in self.data.paths],
            "held_out": [str(p) for p in self.data.held_out],
            "fingerprint": self.data.fingerprint,
            "step": self.step,
            "adversarial_step": self.adversarial_step,
            "seconds": self.seconds,
            "history": self.history,
            "selected_auroc": None,
            "best_auroc": self.best_auroc,
            "encoder": self.encoder.state_dict(),
            "generator": self.generator.state_dict(),
            "critic": self.critic.state_dict(),
            "ema_encoder": self.ema_encoder.module.state_dict(),
            "ema_generator": self.ema_generator.module.state_dict(),
            "ema_updates": int(self.ema_encoder.n_averaged),
            "ge_optimizer": self.ge_optimizer.state_dict(),
            "d_optimizer": self.d_optimizer.state_dict(),
        }
        if self.locator is not None and self.ema_locator is not None:
            state |= {
                "locator": self.locator.state_dict(),
                "ema_locator": self.ema_locator.module.state_dict(),
                "l_optimizer": self.l_optimizer.state_dict(),
            }
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self.step, self.adversarial_step = state["step"], state["adversarial_step"]
        self.seconds, self.history, self.best_auroc = state["seconds"], state["history"], state["best_auroc"]
        has_locator = self.locator is not None
        for name in ("encoder", "generator", "critic", *["locator"] * has_locator):
            getattr(self, name).load_state_dict(state[name])
        for name in ("ge_optimizer", "d_optimizer", *["l_optimizer"] * has_locator):
            _restore_optimizer(getattr(self, name), state[name])
        for name in ("ema_encoder", "ema_generator", *["ema_locator"] * has_locator):
            averaged = getattr(self, name)
            averaged.module.load_state_dict(state[name])
            averaged.n_averaged.fill_(state["ema_updates"])


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load moments and counts, but keep this device's way of computing: the run may have begun on another."""
    ways = [{key: group[key] for key in ("lr", "fused", "capturable")} for group in optimizer.param_groups]
    groups = [{**group, **way} for group, way in zip(state["param_groups"], ways, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for group, way in zip(optimizer.param_groups, ways, strict=True):
        group["lr"] = way["lr"]  # load_state_dict copies it


class Interrupted:
    """Becomes true on SIGINT or SIGTERM, so that the loop ends between two steps and saves."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number

    @contextmanager
    def listening(self) -> Iterator["Interrupted"]:
        """Catch both signals inside the ``with`` block; afterwards they do again what they did before."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for number in before:
                signal.signal(number, self._note)
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Recorder:
    """Means of the losses between two records; finds NaN and a critic that runs away."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._told = False

    def add(self, losses: dict[str, Tensor]) -> None:
        """Take in one step's losses, without waiting for the device."""
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self, step: int) -> dict[str, float]:
        """The means since the last call.

        Raises:
            DivergedError: one of them is not finite.
        """
        means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        broken = [name for name, value in means.items() if not math.isfinite(value)]
        if broken:
            raise DivergedError(
                f"{' and '.join(broken)} became NaN or infinite between steps {step - RECORD_EVERY} and {step}. "
                "The last good checkpoint is kept. Start a new run with a lower --lr, or a larger --gp-weight."
            )
        if not self._told and means.get("gradient_penalty", 0.0) > RUNAWAY_PENALTY:
            self._told = True
            log.warning(
                "the critic is running away: its slopes are far from 1; consider a lower --lr or a larger --gp-weight",
                step=step,
                gradient_penalty=means["gradient_penalty"],
            )
        return means


def train(
    trainer: Trainer,
    run: Path,
    *,
    on_step: Callable[[Progress], None],
    select: Callable[[Trainer], float] | None = None,
    select_every: int = 1000,
) -> bool:
    """Run the loop until the budget is spent or a signal comes; always ends with a checkpoint.

    Args:
        trainer: fresh, or restored from a checkpoint.
        run: folder of the run.
        on_step: called after each step, for progress bars and pictures.
        select: image auROC on test data, for ``protocol: paper`` only; the best weights go to ``best.pt``.
        select_every: steps between two selections (the authors' 1,000).

    Returns:
        Whether the budget was spent (False: interrupted).

    Raises:
        DivergedError: NaN; the checkpoint of before is kept.
    """
    config, fabric = trainer.config, trainer.fabric
    recorder, interrupted = Recorder(), Interrupted()
    started = time.monotonic() - trainer.seconds
    saved_at = time.monotonic()
    losses: dict[str, float] = trainer.history[-1] if trainer.history else {}
    with interrupted.listening():
        while True:
            trainer.seconds = time.monotonic() - started
            fraction = spent(config, trainer.step, trainer.seconds)
            stop = bool(interrupted)
            if fabric.world_size > 1:  # all processes must agree on the clock
                fraction, stop = fabric.broadcast((fraction, stop))
            if fraction >= 1.0 or stop:
                break
            phase = phase_at(config, fraction)
            recorder.add(trainer.advance(phase))
            record = trainer.step % RECORD_EVERY == 0
            if record:
                losses = recorder.take(trainer.step)
                trainer.history.append({"step": trainer.step, "seconds": round(trainer.seconds, 3), **losses})
            if select is not None and trainer.step % select_every == 0:
                _keep_best(trainer, run, select(trainer))
            if record and fabric.is_global_zero and time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                checkpoint.save(run / checkpoint.CHECKPOINT_FILE, trainer.state())
                saved_at = time.monotonic()
            on_step(Progress(trainer.step, trainer.seconds, fraction, phase.name, losses, record))
        if fabric.is_global_zero:
            checkpoint.save(run / checkpoint.CHECKPOINT_FILE, trainer.state())
        fabric.barrier()
    return not stop


def spent(config: FitConfig, step: int, seconds: float) -> float:
    """Share of the budget used up, 0 to 1."""
    by_steps = step / config.steps if config.steps else 0.0
    by_time = seconds / (60.0 * config.minutes) if config.minutes else 0.0
    return min(max(by_steps, by_time), 1.0)


def _keep_best(trainer: Trainer, run: Path, auroc: float) -> None:
    if trainer.best_auroc is None or auroc > trainer.best_auroc:
        trainer.best_auroc = auroc
        if trainer.fabric.is_global_zero:
            checkpoint.save(run / checkpoint.BEST_FILE, {**trainer.state(), "selected_auroc": auroc})
