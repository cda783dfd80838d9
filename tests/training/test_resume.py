"""A training that was killed ends in the same bits as one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_training import small_config, write_clusters

from farfield.training.checkpoint import load_checkpoint
from farfield.training.config import ConfigError
from farfield.training.loop import Trainer
from farfield.training.run import finish, train

CHECKPOINT = Path("small") / "checkpoints" / "last.ckpt"


def differing(first: Any, second: Any, path: str = "") -> list[str]:
    """Return where two nested states differ by as much as a bit."""
    if isinstance(first, torch.Tensor):
        same = first.dtype == second.dtype and torch.equal(first, second)
        return [] if same else [path]
    if isinstance(first, dict):
        assert first.keys() == second.keys(), path
        return [item for key in first for item in differing(first[key], second[key], f"{path}/{key}")]
    if isinstance(first, list | tuple):
        assert len(first) == len(second), path
        return [i for n, (a, b) in enumerate(zip(first, second, strict=True)) for i in differing(a, b, f"{path}/{n}")]
    return [] if first == second else [path]


def final_state(folder: Path) -> dict[str, Any]:
    """Return the last checkpoint without what has to differ: clock times, and where it was written."""
    state = load_checkpoint(folder / CHECKPOINT)
    del state["seconds"], state["config"]
    state["history"]["values"][:, state["history"]["columns"].index("seconds")] = 0
    return state


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clusters(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(small_config(data, folder), quiet=True)
    return folder


@pytest.mark.parametrize("step", [1, 5, 9, 19])
def test_resumes_bit_for_bit(
    data: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    # 5 batches an epoch: stops within epochs, at the end of one, and in both loss stages
    original = Trainer.train_step
    done = 0

    def dying(self: Trainer, *arguments: Any) -> None:
        nonlocal done
        if done == step:
            raise RuntimeError("killed")
        done += 1
        original(self, *arguments)

    config = small_config(data, tmp_path, checkpoint_minutes=0)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", dying)
        with pytest.raises(RuntimeError, match="killed"):
            train(config, quiet=True)
    assert load_checkpoint(tmp_path / CHECKPOINT)["step"] == step
    torch.manual_seed(99)  # whatever else the new process did with random numbers
    result = train(config, resume=True, quiet=True)
    assert result.epochs == 4
    assert differing(final_state(uninterrupted), final_state(tmp_path)) == []
    from safetensors.torch import load_file

    weights = [load_file(folder / "small" / "model.ff") for folder in (uninterrupted, tmp_path)]
    assert differing(*weights) == []


@pytest.mark.slow
def test_killed_process_resumes_bit_for_bit(data: Path, tmp_path: Path) -> None:
    epochs = 400
    config = small_config(data, tmp_path / "killed", epochs=epochs)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "farfield.training", str(file)], env=environment)
    checkpoint = tmp_path / "killed" / CHECKPOINT
    deadline = time.monotonic() + 400
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    reached = load_checkpoint(checkpoint)["epoch"]
    assert 0 < reached < epochs - 20
    epochs = reached + 4  # the length of a training with a plateau does not touch its course
    train(small_config(data, tmp_path / "killed", epochs=epochs), resume=True, quiet=True)
    train(small_config(data, tmp_path / "whole", epochs=epochs), quiet=True)
    assert differing(final_state(tmp_path / "whole"), final_state(tmp_path / "killed")) == []


def test_interrupt_saves_and_says_how_to_go_on(
    data: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = Trainer.train_step

    def interrupted(self: Trainer, *arguments: Any) -> None:
        original(self, *arguments)
        if self.step == 6:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        result = train(small_config(data, tmp_path))
    assert result.interrupted
    assert result.model is None
    assert signal.getsignal(signal.SIGINT) is before
    assert "--resume" in capsys.readouterr().err
    train(small_config(data, tmp_path), resume=True, quiet=True)
    assert differing(final_state(uninterrupted), final_state(tmp_path)) == []


def test_an_existing_run_is_not_overwritten(data: Path, uninterrupted: Path) -> None:
    with pytest.raises(FileExistsError, match="resume"):
        train(small_config(data, uninterrupted), quiet=True)


def test_resuming_with_another_configuration_is_refused(data: Path, uninterrupted: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        train(small_config(data, uninterrupted, batch_size=3), resume=True, quiet=True)


def test_a_run_goes_on_for_longer_with_other_threads(data: Path, tmp_path: Path) -> None:
    """What no weight depends on may change: a machine may have other cores to spare when a training goes on."""
    before = torch.get_num_threads()
    try:
        train(small_config(data, tmp_path, epochs=1, threads=2), quiet=True)
        result = train(small_config(data, tmp_path, epochs=2, threads=1), resume=True, quiet=True)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert result.epochs == 2


def test_resuming_a_finished_run_changes_nothing(data: Path, tmp_path: Path) -> None:
    train(small_config(data, tmp_path, epochs=1), quiet=True)
    before = final_state(tmp_path)
    train(small_config(data, tmp_path, epochs=1), resume=True, quiet=True)
    assert differing(before, final_state(tmp_path)) == []


def test_a_diverging_training_keeps_the_last_sound_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer.train_step

    def poisoned(self: Trainer, *arguments: Any) -> None:
        original(self, *arguments)
        if self.step == 7:
            with torch.no_grad():
                next(self.potential.parameters()).fill_(torch.nan)

    monkeypatch.setattr(Trainer, "train_step", poisoned)
    with pytest.raises(FloatingPointError, match="learning_rate"):
        train(small_config(data, tmp_path, checkpoint_minutes=0), quiet=True)
    state = load_checkpoint(tmp_path / CHECKPOINT)
    assert state["step"] == 7  # steps 0 to 6; the poisoned one was not written
    assert all(torch.isfinite(value).all() for value in state["weights"].values() if value.is_floating_point())


def test_a_stopped_run_can_be_finished_as_it_is(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer.train_step

    def interrupted(self: Trainer, *arguments: Any) -> None:
        original(self, *arguments)
        if self.step == 12:
            signal.raise_signal(signal.SIGINT)

    config = small_config(data, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        assert train(config, quiet=True).model is None
    result = finish(config, quiet=True)
    assert result.model is not None
    assert result.model.is_file()
    assert result.epochs == 2


def test_the_table_of_a_killed_run_is_mended(data: Path, tmp_path: Path) -> None:
    train(small_config(data, tmp_path, epochs=2), quiet=True)
    table = tmp_path / "small" / "metrics.csv"
    before = table.read_text()
    table.write_text(before + before.splitlines()[-1] + "\n3,0.0")
    train(small_config(data, tmp_path, epochs=3), resume=True, quiet=True)
    lines = table.read_text().splitlines()
    assert lines[:3] == before.splitlines()
    assert [line.split(",")[0] for line in lines] == ["epoch", "0", "1", "2"]
