"""What a person sees of a run: the progress bar, pictures of reconstructions, TensorBoard curves."""

import time
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text
from torch.utils.tensorboard import SummaryWriter

from engines.engine import UInt8Array
from train.fit import Progress, Trainer

PICTURE_SECONDS = 60.0
PICTURE_PATCHES = 8
LABELS = {
    "image_consistency": "L_R",
    "latent_consistency": "L_R'",
    "adversarial": "L_EG",
    "wasserstein": "W",
    "gradient_penalty": "GP",
    "location": "L_loc",
    "squared_error": "L2",
    "dissimilarity": "1-SSIM",
    "feature_matching": "L_adv",
    "context": "L_con",
    "encoding": "L_enc",
    "real_fake": "L_D",
    "pixel_error": "L_izi",
    "feature_error": "L_f",
}


class _TimeLeft(ProgressColumn):
    """Time left, from the share of the budget that is spent in this sitting."""

    def render(self, task: Task) -> Text:
        left = task.fields["left"]
        return Text("" if left is None else f"{int(left) // 60}:{int(left) % 60:02d} left")


class RunReporter:
    """Shows a run while it trains; a context manager. Only the first of several processes shows anything."""

    def __init__(self, trainer: Trainer, run: Path, console: Console) -> None:
        self._trainer = trainer
        self._shows = trainer.fabric.is_global_zero
        self._samples = run / "samples"
        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=trainer.step) if self._shows else None
        self._bar = Bar(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("step {task.fields[step]:,}  {task.fields[rate]:.1f}/s"),
            _TimeLeft(),
            TextColumn("{task.fields[losses]}"),
            console=console,
            disable=not (self._shows and console.is_terminal),
        )
        self._console = console
        self._task = self._bar.add_task("", total=1.0, step=trainer.step, rate=0.0, left=None, losses="")
        # The same patches in every picture, so that progress can be seen.
        self._patches = trainer.sampler.sample(PICTURE_PATCHES, torch.Generator().manual_seed(0))
        self._first: tuple[float, float, int] | None = None
        self._pictured_at = time.monotonic()

    def __enter__(self) -> "RunReporter":  # noqa: PYI034 - Self needs Python 3.11
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._shows and kind is None:
            self._save_picture()
        if self._writer is not None:
            self._writer.close()

    def on_step(self, progress: Progress) -> None:
        """Take in one step."""
        if not self._shows:
            return
        now = time.monotonic()
        if self._first is None:
            self._first = (now, progress.fraction, progress.step)
        since, gained = now - self._first[0], progress.fraction - self._first[1]
        self._bar.update(
            self._task,
            description=progress.phase,
            completed=progress.fraction,
            step=progress.step,
            rate=(progress.step - self._first[2]) / since if since else 0.0,
            left=since / gained * (1 - progress.fraction) if gained > 0 else None,
            losses=_told(progress.losses),
        )
        if progress.recorded and self._writer is not None:
            for name, value in progress.losses.items():
                self._writer.add_scalar(f"loss/{name}", value, progress.step)
        if now - self._pictured_at > PICTURE_SECONDS:
            self._save_picture()
            self._pictured_at = now
            if not self._console.is_terminal:  # a log file gets a line instead of the bar
                self._console.print(
                    f"{progress.fraction:4.0%} {progress.phase}, step {progress.step:,}: {_told(progress.losses)}",
                    highlight=False,
                )

    def _save_picture(self) -> None:
        self._samples.mkdir(exist_ok=True)
        path = self._samples / f"{self._trainer.step:08d}.png"
        cv2.imwrite(str(path), reconstruction_sheet(self._trainer, self._patches))


def _told(losses: dict[str, float]) -> str:
    return "  ".join(f"{LABELS[k]} {v:.4g}" for k, v in losses.items() if k in LABELS)


@torch.no_grad()
def reconstruction_sheet(trainer: Trainer, patches: torch.Tensor) -> UInt8Array:
    """Rows: patches x, their reconstructions G(E(x)) with averaged weights, and |x - G(E(x))|. BGR picture."""
    encoder, generator = trainer.averaged
    reconstructed = generator(encoder(patches))
    residual = (patches - reconstructed).abs() - 1.0
    rows = [torch.cat(list(t), dim=2) for t in (patches, reconstructed, residual)]
    picture = torch.cat(rows, dim=1).float().cpu().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(picture.permute(1, 2, 0).numpy()[:, :, ::-1])
