"""The training loop, on Lightning Fabric.

Fabric brings devices, processes (DDP) and gradient reduction; the loop itself is written out here, because a training
that was killed has to resume at any batch and end in the same bits, and that needs all of the state in one place.
"""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from farfield.datasets.dataset import Dataset, Sample, collate, load_dataset
from farfield.potentials.augmented import AugmentedPotential
from farfield.training.build import build_potential, calibrate
from farfield.training.checkpoint import load_checkpoint, save_checkpoint, write_atomically, write_text
from farfield.training.config import ConfigError, DataConfig, SourceConfig, TrainingConfig, parse_config, read_config
from farfield.training.losses import ErrorSums, final_weights, used_labels
from farfield.training.module import PotentialModule, make_optimizer
from farfield.training.reporting import Reporter
from farfield.training.sampler import EpochBatches, split_indices
from farfield.training.schedules import AveragedWeights, EarlyStopping, LearningRate

#: Keys of the configuration that may change between a run and its resumption: they do not touch what was computed.
FREE_KEYS = {"epochs", "stop", "checkpoint_minutes", "output", "description", "licence", "validation_batch_size"}


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """What a training leaves.

    Attributes
    ----------
    directory
        Directory of the run.
    model
        The final model's file; None where the training was interrupted.
    metrics
        By part of the data (``train``, ``validation``, ``test``): errors of the final model in meV/atom, meV/Å, meV/Å³.
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


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingData:
    """The parts of the data, with neighbours."""

    train: Dataset
    validation: Dataset | None
    test: Dataset | None

    def parts(self) -> dict[str, Dataset]:
        """The parts that there are, by name."""
        every = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in every.items() if part is not None}


def load_training_data(config: TrainingConfig) -> TrainingData:
    """Read, select and split the data of a configuration, without neighbours.

    Raises
    ------
    FileNotFoundError
        If a set is not here.
    ConfigError
        If a label with a weight in the loss is missing, or a split leaves nothing.
    ValueError
        If a file cannot be read.
    """
    dtype = getattr(torch, config.precision)

    def read(sources: Sequence[SourceConfig], part: str) -> Dataset | None:
        if not sources:
            return None
        data: DataConfig = config.data
        sets = [
            load_dataset(
                source.set,
                columns=data.columns,
                units=data.units,
                conventions=data.conventions,
                dtype=dtype,
                total_charge=data.total_charge,
                select=source.select,
            )
            for source in sources
        ]
        samples = [sample for one in sets for sample in one]
        dataset = Dataset(samples, " + ".join(s.set for s in sources), [entry for one in sets for entry in one.info])
        lacking = [name for name in ("energy", *used_labels(config.loss.stages)) if name not in dataset.labels]
        if lacking:
            raise ConfigError(
                f"data.{part}: the loss needs {lacking}, which not every frame of {dataset.name!r} has; "
                f"labels that all have: {sorted(dataset.labels)}. Map the columns in data.columns or set the weight to 0"
            )
        # Labels that nothing is trained on are dropped here: they are neither moved nor seen.
        wanted = ("energy", *used_labels(config.loss.stages))
        kept = [Sample(s.batch, {name: s.labels[name] for name in dict.fromkeys(wanted)}) for s in dataset]
        return Dataset(kept, dataset.name, dataset.info)

    train, validation, test = (
        read(config.data.train, "train"),
        read(config.data.validation, "validation"),
        read(config.data.test, "test"),
    )
    assert train is not None  # noqa: S101 - the configuration refuses an empty list
    if config.data.split is not None:
        first, second = split_indices(len(train), config.data.split)
        train, validation = train.subset(first), train.subset(second)
    return TrainingData(train, validation, test)


def evaluate(
    module: PotentialModule, potential: AugmentedPotential, dataset: Dataset, batch_size: int, fabric: Any = None
) -> ErrorSums:
    """Errors of a potential over a set; with several processes each takes a share and the sums are joined."""
    device = next(potential.parameters()).device
    sums = ErrorSums(device)
    rank, world = (fabric.global_rank, fabric.world_size) if fabric is not None else (0, 1)
    indices = range(rank, len(dataset), world)
    for start in range(0, len(indices), batch_size):
        sample = collate([dataset[i] for i in indices[start : start + batch_size]]).to(device)
        sums.add(module.errors(potential, sample, create_graph=False), module.loss_config)
    if world > 1:
        sums.values = fabric.all_reduce(sums.values, reduce_op="sum")
    return sums


class Interrupt:
    """Whether someone asked the training to stop (Ctrl-C, SIGTERM); asking twice stops it where it stands."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen for signals; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, frame: Any) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Trainer:
    """One training: everything that changes in the course of it, and the loop.

    Parameters
    ----------
    config
        The configuration.
    quiet
        Show nothing.
    """

    def __init__(self, config: TrainingConfig, *, quiet: bool = False) -> None:
        from lightning.fabric import Fabric

        self.config = config
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.fabric = Fabric(
            accelerator=config.accelerator,
            devices=config.devices,
            # Heads of elements or ranks that a batch lacks may be without gradient.
            strategy="ddp_find_unused_parameters_true" if config.devices > 1 else "auto",
        )
        self.fabric.launch()
        self.dtype = getattr(torch, config.precision)
        torch.manual_seed(config.seed)
        data = load_training_data(config)
        potential = build_potential(config.model, data.train, self.dtype)
        self.data = TrainingData(
            *(
                None if part is None else part.with_neighbors(potential.cutoff)
                for part in (data.train, data.validation, data.test)
            )  # type: ignore[arg-type]
        )
        calibrate(potential, self.data.train)
        potential.to(self.fabric.device)
        self.potential = potential
        self.module = PotentialModule(potential, config.loss, config.optimizer)
        self.optimizer = make_optimizer(potential, config.optimizer)
        self.average = AveragedWeights(potential, config.optimizer.ema)
        self.step_module: Callable[[Sample], torch.Tensor] = self.module
        if self.fabric.world_size > 1:
            self.step_module, self.optimizer = self.fabric.setup(self.module, self.optimizer)
        self.sampler = EpochBatches(
            len(self.data.train), config.batch_size, config.seed, self.fabric.global_rank, self.fabric.world_size
        )
        self.learning_rate = LearningRate(config.optimizer, len(self.sampler), config.epochs)
        self.stopping = EarlyStopping(config.stop, config.loss.stages[-1].from_epoch + config.loss.stages[-1].ramp)
        self.sums = ErrorSums(self.fabric.device)
        self.epoch = self.batch = self.step = 0
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, torch.Tensor] = {}
        self.seconds = 0.0
        self.interrupt = Interrupt()
        self.report = Reporter(
            config.directory,
            config.epochs,
            len(self.sampler),
            active=self.fabric.is_global_zero,
            quiet=quiet,
        )

    # State ------------------------------------------------------------------------------------------------------

    @property
    def checkpoint_path(self) -> Path:
        """The checkpoint of the run."""
        return self.config.directory / "checkpoints" / "last.ckpt"

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes: tensors and plain types only."""
        return {
            "config": self.config.model_dump(mode="json"),
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "seconds": self.seconds,
            "weights": self.potential.state_dict(),
            "reference_energies": dict(self.potential.reference_energies),
            "average": self.average.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "learning_rate": self.learning_rate.state_dict(),
            "stopping": self.stopping.state_dict(),
            "sums": self.sums.values,
            "history": self.history,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if self.fabric.device.type == "cuda" else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state.

        Raises
        ------
        ConfigError
            If it is the state of another training.
        """
        _check_same(state["config"], self.config)
        self.epoch, self.batch, self.step = state["epoch"], state["batch"], state["step"]
        self.seconds = state["seconds"]
        self.potential.load_state_dict(state["weights"])
        self.potential.set_reference_energies(state["reference_energies"])
        self.average.load_state_dict(state["average"])
        if self.config.optimizer.ema is not None:
            self.average.model.set_reference_energies(state["reference_energies"])  # type: ignore[operator]
        self.best = state["best"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.learning_rate.load_state_dict(state["learning_rate"])
        self.stopping.load_state_dict(state["stopping"])
        self.sums.values.copy_(state["sums"])
        self.history = state["history"]
        torch.set_rng_state(state["random"])
        if state["random_cuda"] and self.fabric.device.type == "cuda":
            torch.cuda.set_rng_state_all(state["random_cuda"])

    def save(self) -> None:
        """Write the checkpoint, from the first process."""
        if self.fabric.is_global_zero:
            save_checkpoint(self.checkpoint_path, self.state_dict())

    # Loop -------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train to the end, or until asked to stop."""
        self.report.start(self.epoch)
        started = time.monotonic() - self.seconds
        last_saved = time.monotonic()
        single = self.fabric.world_size == 1
        parameters = [p for p in self.potential.parameters() if p.requires_grad]
        try:
            with self.interrupt.listening():
                while self.epoch < self.config.epochs and not self.stopping.stop:
                    self.module.set_loss_epoch(self.epoch)
                    self.module.sums = self.sums
                    self.sampler.set_epoch(self.epoch, self.batch)
                    for indices in self.sampler:
                        self.train_step(indices, parameters)
                        self.batch += 1
                        self.step += 1
                        self.report.batch(self.epoch, self.batch)
                        # Processes must agree on where they stop: with several, only between epochs.
                        late = time.monotonic() - last_saved > 60 * self.config.checkpoint_minutes
                        if single and self.batch < len(self.sampler) and (late or self.interrupt.asked):
                            self.seconds = time.monotonic() - started
                            self.check_finite()
                            self.save()
                            last_saved = time.monotonic()
                            if self.interrupt.asked:
                                return
                    self.seconds = time.monotonic() - started
                    self.end_epoch()
                    self.save()
                    last_saved = time.monotonic()
                    if self._asked_anywhere():
                        return
        finally:
            self.report.close()

    def _asked_anywhere(self) -> bool:
        if self.fabric.world_size == 1:
            return self.interrupt.asked
        asked = torch.tensor(float(self.interrupt.asked), device=self.fabric.device)
        return bool(self.fabric.all_reduce(asked, reduce_op="sum") > 0)

    def train_step(self, indices: Sequence[int], parameters: Sequence[torch.nn.Parameter]) -> None:
        """One step of the optimizer."""
        sample = collate([self.data.train[i] for i in indices])
        if self.fabric.device.type != "cpu":
            sample = sample.to(self.fabric.device)
        rate = self.learning_rate.at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(self.step_module(sample))
        if self.config.optimizer.clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self.config.optimizer.clip)
        self.optimizer.step()
        self.average.update()

    def check_finite(self) -> None:
        """Stop at numbers that are none, while the checkpoint on disk is still sound.

        Raises
        ------
        FloatingPointError
            If errors or weights are not finite.
        """
        sound = torch.isfinite(self.sums.values).all()
        for parameter in self.potential.parameters():
            sound &= torch.isfinite(parameter).all()
        if not sound:
            raise FloatingPointError(
                f"the training became NaN or infinite in epoch {self.epoch}: lower optimizer.learning_rate, set "
                f"optimizer.clip, or look for broken labels with `farfield inspect`; the checkpoint of the epoch "
                f"before is kept at {self.checkpoint_path}"
            )

    def end_epoch(self) -> None:
        """Validate, log, and let schedules and early stopping see the result."""
        self.check_finite()
        weights = final_weights(self.config.loss.stages)
        train = self.sums.values
        if self.fabric.world_size > 1:
            train = self.fabric.all_reduce(train.clone(), reduce_op="sum")
        row: dict[str, Any] = {"epoch": self.epoch, "learning_rate": self.learning_rate.at(self.step)}
        row["train/loss"] = self.sums.loss(self.module.weights, train)
        row |= {f"train/{key}": value for key, value in self.sums.metrics(train).items()}
        monitored = self.sums.loss(weights, train)
        last = self.epoch + 1 == self.config.epochs
        if self.data.validation is None:
            self.learning_rate.end_epoch(monitored)
        elif (self.epoch + 1) % self.config.validate_every == 0 or last:
            sums = evaluate(
                self.module,
                self.average.model,  # type: ignore[arg-type]
                self.data.validation,
                self.config.validation_batch_size,
                self.fabric,
            )
            monitored = sums.loss(weights)
            row["validation/loss"] = monitored
            row |= {f"validation/{key}": value for key, value in sums.metrics().items()}
            self.learning_rate.end_epoch(monitored)
            if self.stopping.update(monitored, self.epoch):
                self.best = {k: v.detach().clone() for k, v in self.average.model.state_dict().items()}
        row["seconds"] = self.seconds
        self.history.append(row)
        self.report.epoch(row, self.history)
        self.epoch += 1
        self.batch = 0
        self.sums.values.zero_()

    # End --------------------------------------------------------------------------------------------------------

    def final_potential(self) -> AugmentedPotential:
        """The averaged weights of the best epoch, or of the last."""
        potential: AugmentedPotential = self.average.model  # type: ignore[assignment]
        if self.config.keep == "best" and self.best:
            potential.load_state_dict(self.best)
        return potential

    def finish(self) -> TrainingResult:
        """Evaluate and write the final model, and print the summary."""
        directory = self.config.directory
        potential = self.final_potential()
        metrics = {
            name: evaluate(self.module, potential, part, self.config.validation_batch_size, self.fabric).metrics()
            for name, part in self.data.parts().items()
        }
        path = directory / "model.ff"
        if self.fabric.is_global_zero:
            save_model(path, potential, self.config, self.data, metrics, self.stopping.best_epoch)
            n_parameters = sum(p.numel() for p in potential.parameters())
            kept = self.stopping.best_epoch if self.config.keep == "best" and self.best else self.epoch - 1
            self.report.summary(
                f"{self.config.name}: {self.epoch} epochs in {_duration(self.seconds)}",
                metrics,
                [
                    f"model of epoch {kept + 1}, {n_parameters} parameters, "
                    f"{len(self.data.train)} training frames: {path}",
                    f"logs: {directory / 'metrics.csv'}, tensorboard --logdir {directory / 'tensorboard'}",
                ],
            )
        self.fabric.barrier()
        return TrainingResult(directory, path, metrics, self.epoch, self.stopping.best_epoch, False, self.seconds)


def _check_same(before: dict[str, Any], config: TrainingConfig) -> None:
    now = config.model_dump(mode="json")
    # The cosine spans the whole training: another length is another training.
    free = FREE_KEYS - ({"epochs"} if config.optimizer.decay.kind == "cosine" else set())
    differing = sorted(key for key in now if key not in free and now[key] != before.get(key))
    if differing:
        raise ConfigError(
            f"the checkpoint in {config.directory} was made with other values of {differing}: resume with the "
            f"configuration in {config.directory / 'config.yaml'}, or start under another `name`"
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def save_model(
    path: Path,
    potential: AugmentedPotential,
    config: TrainingConfig,
    data: TrainingData,
    metrics: dict[str, dict[str, float]],
    best_epoch: int,
) -> None:
    """Write the final model."""
    import json

    from safetensors.torch import save

    tensors = {name: value.detach().cpu().contiguous() for name, value in potential.state_dict().items()}
    metadata = {"farfield": json.dumps({"config": potential.config()})}
    write_atomically(path, lambda file: file.write(save(tensors, metadata)))


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
    FloatingPointError
        If the training diverges.
    """
    if isinstance(config, dict):
        config = parse_config(config)
    directory = config.directory
    checkpoint = directory / "checkpoints" / "last.ckpt"
    if checkpoint.exists() and not resume:
        raise FileExistsError(
            f"there is a run in {directory} already: go on with it (--resume), or choose another `name`"
        )
    state = load_checkpoint(checkpoint) if checkpoint.exists() else None
    trainer = Trainer(config, quiet=quiet)
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
    return trainer.finish()


def dump_config(config: TrainingConfig) -> str:
    """The configuration as YAML, defaults included."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def train_from_yaml(
    path: str | Path, *, resume: bool = False, overrides: Sequence[str] = (), quiet: bool = False
) -> TrainingResult:
    """Train by a YAML configuration; ``overrides`` are strings such as ``epochs=10`` (see `train`)."""
    return train(read_config(path, overrides), resume=resume, quiet=quiet)
