"""Training from one call: a configuration in, a directory with model, logs and checkpoints out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.utilities import rank_zero_only

from farfield.files import write_text
from farfield.training.checkpoint import load_checkpoint
from farfield.training.config import TrainingConfig
from farfield.training.export import save_model
from farfield.training.lock import locked
from farfield.training.loop import Trainer
from farfield.training.reading import parse_config, read_config


@dataclass(frozen=True)
class TrainingResult:
    """What a training leaves.

    Attributes
    ----------
    directory
        Directory of the run.
    model
        The final model's file; None where the training was interrupted.
    metrics
        By part of the data (``train``, ``validation``, ``test``): errors of the final model, in
        the units of `farfield.training.reporting.UNITS`.
    epochs
        Epochs done.
    best_epoch
        Epoch of the best validation loss (from 0), or -1.
    interrupted
        Whether a signal ended it before its time.
    seconds
        Time spent in the loop, earlier parts of a resumed run included.
    """

    directory: Path
    model: Path | None
    metrics: dict[str, dict[str, float]]
    epochs: int
    best_epoch: int
    interrupted: bool
    seconds: float


def train(config: TrainingConfig | dict[str, Any], *, resume: bool = False, quiet: bool = False) -> TrainingResult:
    """Train a model.

    Parameters
    ----------
    config
        The configuration, or a mapping to make one from.
    resume
        Go on from the run's last checkpoint; where there is none yet, start from the beginning.
    quiet
        Show nothing.

    Returns
    -------
    TrainingResult
        Where the outputs are, and the errors of the final model.

    Raises
    ------
    ConfigError
        If the configuration cannot be used, or differs from that of the run to resume.
    FileExistsError
        If there is a run of this name already and ``resume`` is not set.
    RunInUseError
        If another process trains in the folder of the run.
    FloatingPointError
        If the training diverges.
    """
    if isinstance(config, dict):
        config = parse_config(config)
    with _alone(config):
        return _train(config, resume, quiet)


def _alone(config: TrainingConfig) -> AbstractContextManager[None]:
    """Keep other trainings out of the run's folder; the first of several processes does it for all."""
    # Lightning keeps the rank on this function; the other processes are started only later.
    rank = getattr(rank_zero_only, "rank", 0)
    return locked(config.directory) if rank == 0 else nullcontext()


def _train(config: TrainingConfig, resume: bool, quiet: bool) -> TrainingResult:
    directory = config.directory
    checkpoint = directory / "checkpoints" / "last.ckpt"
    if checkpoint.exists() and not resume:
        raise FileExistsError(
            f"there is a run in {directory} already: go on with it (--resume), or choose another `name`"
        )
    state = load_checkpoint(checkpoint) if checkpoint.exists() else None
    trainer = Trainer(config, quiet=quiet, resuming=state is not None)
    if state is not None:
        trainer.load_state_dict(state)
        trainer.report.say(f"resumed at epoch {trainer.epoch + 1}, batch {trainer.batch + 1}")
    if trainer.fabric.is_global_zero:
        write_text(directory / "config.yaml", dump_config(config))
    trainer.run()
    if trainer.interrupt.asked and trainer.epoch < config.epochs:
        trainer.report.say(
            f"interrupted in epoch {trainer.epoch + 1}; everything is saved. Go on with: "
            f"farfield train {directory / 'config.yaml'} --resume"
        )
        return TrainingResult(directory, None, {}, trainer.epoch, trainer.stopping.best_epoch, True, trainer.seconds)
    return _finish(trainer)


def finish(config: TrainingConfig | dict[str, Any], *, quiet: bool = False) -> TrainingResult:
    """Make the final model of a run from its last checkpoint, without training on: for runs that were stopped for good.

    Raises
    ------
    FileNotFoundError
        If the run has no checkpoint.
    ConfigError
        If the configuration differs from that of the run.
    RunInUseError
        If another process trains in the folder of the run.
    """
    if isinstance(config, dict):
        config = parse_config(config)
    with _alone(config):
        state = load_checkpoint(config.directory / "checkpoints" / "last.ckpt")
        trainer = Trainer(config, quiet=quiet, resuming=True)
        trainer.load_state_dict(state)
        return _finish(trainer)


def _finish(trainer: Trainer) -> TrainingResult:
    """Evaluate and write the final model, and print the summary."""
    config, directory = trainer.config, trainer.config.directory
    potential = trainer.final_potential()
    metrics = trainer.metrics(potential)
    path = directory / "model.ff"
    if trainer.fabric.is_global_zero:
        sign = trainer.module.gauge_sign
        save_model(path, potential, config, trainer.data, metrics, trainer.kept_epoch, sign)
        n_parameters = sum(p.numel() for p in potential.parameters())
        trainer.report.summary(
            f"{config.name}: {trainer.epoch} epochs in {_duration(trainer.seconds)}",
            metrics,
            [
                f"model of epoch {trainer.kept_epoch + 1}, {n_parameters} parameters, "
                f"{len(trainer.data.train)} training frames: {path}",
                f"logs: {directory / 'metrics.csv'}, tensorboard --logdir {directory / 'tensorboard'}",
            ],
        )
    trainer.fabric.barrier()
    return TrainingResult(directory, path, metrics, trainer.epoch, trainer.stopping.best_epoch, False, trainer.seconds)


def dump_config(config: TrainingConfig) -> str:
    """Return the configuration as YAML, defaults included."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def train_from_yaml(
    path: str | Path, *, resume: bool = False, overrides: Sequence[str] = (), quiet: bool = False
) -> TrainingResult:
    """Train by a YAML configuration; ``overrides`` are strings such as ``epochs=10`` (see `train`)."""
    return train(read_config(path, overrides), resume=resume, quiet=quiet)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
