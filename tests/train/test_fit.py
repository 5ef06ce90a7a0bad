"""The loop: schedules, exact resumption, signals, divergence."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import structlog
import torch
from lightning_fabric import Fabric

from train import checkpoint
from train.config import FitConfig, preset
from train.data import TrainingImages
from train.fit import DivergedError, Recorder, Trainer, phase_at, players_at, spent, train

TINY = {"width": 1, "latent_size": 8, "batch_size": 2}


def texture(seed: int = 0, size: int = 80) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    return (190 + 40 * np.sin(x / 3) * np.cos(y / 5) + rng.normal(0, 10, (size, size))).clip(0, 255).astype(np.uint8)


def data() -> TrainingImages:
    images = [texture(i)[..., None] for i in range(3)]
    return TrainingImages(images, [Path(f"{i}.png") for i in range(3)], "gray", "0" * 64, [])


def trainer(config: FitConfig) -> Trainer:
    return Trainer(config, data(), Fabric(accelerator="cpu", devices=1))


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    nets = {"E": trainer.encoder, "G": trainer.generator, "D": trainer.critic}
    nets |= dict(zip(("ema E", "ema G"), trainer.averaged, strict=True))
    return {f"{n}.{k}": v.clone() for n, net in nets.items() for k, v in net.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_the_authors_schedule():
    assert [players_at(s, 5) for s in range(1, 14)] == [
        (True, True), *[(False, True)] * 4, (True, False), *[(False, True)] * 5, (True, False), (False, True)
    ]  # fmt: skip
    assert sum(players_at(s, 5)[0] for s in range(1, 1_200_001)) == 200_001  # REFERENCE item 6
    assert [players_at(s, 1) for s in range(2, 6)] == [(True, False), (False, True)] * 2
    assert players_at(7, 0) == (True, True)


def test_phases_follow_the_budget():
    config = FitConfig(warm_start=0.5, warm_lr=1e-3, lr=1e-4, final_lr=0.1, steps=100)
    assert phase_at(config, 0.0).lr == pytest.approx(1e-3)
    assert phase_at(config, 0.25).lr == pytest.approx(1e-3 * 0.55)
    assert phase_at(config, 0.49).warm
    assert not phase_at(config, 0.5).warm
    assert phase_at(config, 0.5).lr == pytest.approx(1e-4)
    assert phase_at(config, 1.0).lr == pytest.approx(1e-5)
    assert not phase_at(FitConfig(warm_start=0.0), 0.0).warm
    assert spent(config, 50, 1e9) == 0.5
    assert spent(FitConfig(minutes=2), 50, 60) == 0.5
    assert spent(FitConfig(minutes=2, steps=50), 50, 60) == 1.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("warm_start", [0.5, 0.0])
def test_recorded_steps_compute_what_eager_ones_do(warm_start):
    """Seen on an H100: losses within 0.8 % after 24 steps of width 8; kernels add in another order."""
    config = FitConfig(**TINY, warm_start=warm_start, steps=24)
    last = []
    for record in (False, True):
        made = Trainer(config, data(), Fabric(accelerator="cuda", devices=1), record=record)
        for _ in range(config.steps):
            losses = made.advance(phase_at(config, made.step / config.steps))
        last.append({name: float(loss) for name, loss in losses.items()})
    assert last[1] == pytest.approx(last[0], rel=0.05, abs=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_run_of_the_gpu_goes_on_on_the_cpu_and_back(tmp_path):
    config = FitConfig(**TINY, warm_start=0.5, steps=12)
    path = tmp_path / "checkpoint.pt"
    for accelerator in ("cuda", "cpu", "cuda"):
        made = Trainer(config, data(), Fabric(accelerator=accelerator, devices=1))
        if path.is_file():
            made.restore(checkpoint.load(path))
        for _ in range(6):
            losses = made.advance(phase_at(config, 0.2))
        assert all(math.isfinite(float(loss)) for loss in losses.values())
        checkpoint.save(path, made.state())
    assert made.step == 18


def test_training_learns_and_leaves_the_critic_alone_at_first(tmp_path):
    config = FitConfig(**TINY, warm_start=1.0, warm_lr=5e-3, final_lr=1.0, steps=100)
    tr = trainer(config)
    before = weights(tr)
    assert train(tr, tmp_path, on_step=lambda progress: None)
    assert tr.history[-1]["image_consistency"] < 0.8 * tr.history[0]["image_consistency"]
    after = weights(tr)
    assert all(torch.equal(before[k], after[k]) for k in before if k.startswith("D."))
    assert not equal(before, after)


def test_all_three_train_in_the_adversarial_phase(tmp_path):
    config = FitConfig(**TINY, warm_start=0.0, steps=2)
    tr = trainer(config)
    before = weights(tr)
    train(tr, tmp_path, on_step=lambda progress: None)
    after = weights(tr)
    for net in ("E.", "G.", "D.", "ema E."):
        assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith(net)), net


@pytest.mark.parametrize("warm_start", [0.5, 0.0])
def test_a_resumed_run_ends_with_the_same_weights(tmp_path, warm_start):
    config = FitConfig(**TINY, warm_start=warm_start, steps=12, d_iter=1 if warm_start == 0 else 0, rotate=(-9, 9))
    whole = trainer(config)
    train(whole, tmp_path, on_step=lambda progress: None)

    first = trainer(config)

    def stop(progress):
        if progress.step == 7:
            signal.raise_signal(signal.SIGINT)

    assert not train(first, tmp_path, on_step=stop)
    second = trainer(config)
    torch.rand(100)  # the global generator must not matter
    second.restore(checkpoint.load(tmp_path / checkpoint.CHECKPOINT_FILE))
    assert second.step == 7
    assert train(second, tmp_path, on_step=lambda progress: None)
    assert equal(weights(whole), weights(second))


def test_seeds_differ(tmp_path):
    assert not equal(weights(trainer(FitConfig(**TINY, seed=1))), weights(trainer(FitConfig(**TINY, seed=2))))


def test_nan_stops_the_run_and_keeps_the_last_checkpoint(tmp_path):
    config = FitConfig(**TINY, warm_start=1.0, steps=200)
    tr = trainer(config)
    checkpoint.save(tmp_path / checkpoint.CHECKPOINT_FILE, tr.state())
    good = (tmp_path / checkpoint.CHECKPOINT_FILE).read_bytes()

    def poison(progress):
        if progress.step == 10:
            with torch.no_grad():
                tr.generator.out.weight.fill_(math.nan)

    with pytest.raises(DivergedError, match=r"between steps 0 and 50.*lower --lr"):
        train(tr, tmp_path, on_step=poison)
    assert (tmp_path / checkpoint.CHECKPOINT_FILE).read_bytes() == good


def test_a_critic_that_runs_away_is_told_once(monkeypatch):
    captured = structlog.testing.LogCapture()
    monkeypatch.setattr("train.fit.log", structlog.wrap_logger(structlog.PrintLogger(), processors=[captured]))
    recorder = Recorder()
    for step in (50, 100):
        recorder.add({"gradient_penalty": torch.tensor(1e6)})
        recorder.take(step)
    (told,) = captured.entries
    assert "running away" in told["event"]
    assert told["gradient_penalty"] == 1e6


def test_a_checkpoint_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / checkpoint.CHECKPOINT_FILE
    checkpoint.save(path, {"value": 1})

    def die(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", die)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(path, {"value": 2})
    assert checkpoint.load(path)["value"] == 1


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path):
    path = tmp_path / checkpoint.CHECKPOINT_FILE
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint here"):
        checkpoint.load(path)
    checkpoint.save(path, {"value": 1})
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(checkpoint.CheckpointError, match="damaged"):
        checkpoint.load(path)
    torch.save({"format": 99}, path)
    with pytest.raises(checkpoint.CheckpointError, match="format 99"):
        checkpoint.load(path)
    torch.save({"format": 1, "evil": Path("x")}, path)  # a class that weights_only does not allow
    with pytest.raises(checkpoint.CheckpointError, match="damaged"):
        checkpoint.load(path)


def test_presets_state_what_the_authors_and_the_paper_do():
    ours, reference, paper = (FitConfig.model_validate(preset(p)) for p in ("default", "reference", "paper"))
    assert ours == FitConfig()
    assert (reference.alpha, reference.d_iter, reference.gp_weight, reference.steps) == (1e-5, 5, 10.0, 1_200_000)
    assert (reference.betas_ge, reference.betas_d, reference.bias) == ((0.0, 0.1), (0.0, 0.9), False)
    assert (reference.ema_every, reference.ema_decay, reference.warm_start) == (10, 0.999, 0.0)
    assert (paper.alpha, paper.d_iter, paper.rotate, paper.lr) == (1e-4, 1, (-45.0, 0.0), 1e-4)
    with pytest.raises(ValueError, match="none of default"):
        preset("best")


def images_folder(folder: Path) -> Path:
    for i in range(3):
        path = folder / "train" / "good" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), texture(i))
    return folder


def station_train(*args: str, **kwargs) -> subprocess.Popen:
    env = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "train", *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, **kwargs)


def fit_args(folder: Path, run: Path, steps: int) -> list[str]:
    return [
        *("fit", "--data", str(folder), "--out", str(run), "--width", "1", "--latent-size", "8"),
        *("--batch-size", "2", "--steps", str(steps), "--warm-start", "0.5"),
    ]


def wait_for_step(run: Path, process: subprocess.Popen) -> None:
    """Until TensorBoard's file shows that training is under way."""
    while not list(run.glob("tensorboard/*")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    time.sleep(0.5)


def test_command_line_ctrl_c_resume_and_refusals(tmp_path):
    folder, run = images_folder(tmp_path / "data"), tmp_path / "run"
    process = station_train(*fit_args(folder, run, 1_000_000))
    wait_for_step(run, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    assert process.returncode == 130
    assert f"station-train fit --data {folder} --out {run}" in output
    step = checkpoint.load(run / checkpoint.CHECKPOINT_FILE)["step"]
    assert step > 0

    process = station_train("fit", "--data", str(folder), "--out", str(run), "--steps", str(step + 3))
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert f"resuming {run} at step {step:,}" in output
    assert "patches, which are few: 4,000 are better" in output
    assert checkpoint.load(run / checkpoint.CHECKPOINT_FILE)["step"] == step + 3
    assert list((run / "samples").glob("*.png"))

    process = station_train(*fit_args(folder, run, step + 3), "--alpha", "0.5")
    output, _ = process.communicate()
    assert process.returncode == 2
    assert "was started with alpha = 0.01" in output

    cv2.imwrite(str(folder / "train/good/new.png"), texture(9))
    process = station_train("fit", "--data", str(folder), "--out", str(run))
    output, _ = process.communicate()
    assert process.returncode == 1
    assert "trained on other images" in output


def test_sigkill_leaves_a_checkpoint_that_resumes(tmp_path):
    folder, run = images_folder(tmp_path / "data"), tmp_path / "run"
    process = station_train(*fit_args(folder, run, 20))
    output, _ = process.communicate()
    assert process.returncode == 0, output
    process = station_train("fit", "--data", str(folder), "--out", str(run), "--steps", "1000000")
    wait_for_step(run, process)
    process.kill()
    process.communicate()
    assert checkpoint.load(run / checkpoint.CHECKPOINT_FILE)["step"] == 20
    process = station_train("fit", "--data", str(folder), "--out", str(run), "--steps", "25")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert checkpoint.load(run / checkpoint.CHECKPOINT_FILE)["step"] == 25


def test_two_processes_train_together(tmp_path):
    """Fabric's strategy for several devices, on CPU processes: one run, one checkpoint."""
    folder, run = images_folder(tmp_path / "data"), tmp_path / "run"
    process = station_train(*fit_args(folder, run, 6), "--devices", "2")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert checkpoint.load(run / checkpoint.CHECKPOINT_FILE)["step"] == 6


def test_values_out_of_range_name_option_and_way_out(tmp_path):
    folder = images_folder(tmp_path / "data")
    for args, expected in (
        (["--alpha", "2"], "--alpha"),
        (["--frame-size", "512"], "HEIGHTxWIDTH"),
        (["--rotate", "a:b"], "LO:HI"),
        (["--preset", "best"], "none of default, reference, paper"),
    ):
        process = station_train("fit", "--data", str(folder), "--out", str(tmp_path / "x"), *args)
        output, _ = process.communicate()
        assert process.returncode == 2, output
        assert expected in output
    assert not (tmp_path / "x").exists()


def test_protocol_paper_keeps_the_best_on_test(tmp_path):
    folder, run = images_folder(tmp_path / "data"), tmp_path / "run"
    for kind in ("good", "hole"):
        for i in range(2):
            image = texture(50 + i)
            if kind == "hole":
                image[30:50, 30:50] = 0
            path = folder / "test" / kind / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), image)
    process = station_train(*fit_args(folder, run, 1001), "--protocol", "paper", "--warm-start", "1")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    best = checkpoint.load(run / checkpoint.BEST_FILE)
    assert best["step"] == 1000
    assert 0 <= best["selected_auroc"] <= 1
    assert checkpoint.load_trained(run).selected_auroc == best["selected_auroc"]
