"""The training loop, on Lightning Fabric.

Fabric brings devices, processes (DDP) and gradient reduction; the loop itself is written out here, because a training
that was killed has to resume at any batch and end in the same bits, and that needs all of the state in one place.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from farfield.datasets.dataset import Dataset, Sample, collate
from farfield.potentials.augmented import AugmentedPotential
from farfield.training.build import build_potential, calibrate
from farfield.training.checkpoint import save_checkpoint
from farfield.training.config import ConfigError, TrainingConfig
from farfield.training.data import load_training_data
from farfield.training.initial import start_from
from farfield.training.interrupt import Interrupt
from farfield.training.losses import ErrorSums, final_weights, used_responses
from farfield.training.module import PotentialModule, make_optimizer
from farfield.training.reading import parse_config
from farfield.training.reporting import History, Reporter
from farfield.training.responses import SIGNED
from farfield.training.sampler import EpochBatches
from farfield.training.schedules import AveragedWeights, EarlyStopping, LearningRate

#: Keys of the configuration that may change between a run and its resumption: they do not touch what was computed.
FREE_KEYS = frozenset(
    {
        "epochs", "stop", "checkpoint_minutes", "output", "description", "licence", "validation_batch_size", "threads",
    }
)  # fmt: skip


def evaluate(
    module: PotentialModule, potential: AugmentedPotential, dataset: Dataset, batch_size: int, fabric: Any = None
) -> ErrorSums:
    """Sum the errors of a potential over a set; several processes take a share each and join their sums."""
    device = next(potential.parameters()).device
    sums = ErrorSums(device)
    rank, world = (fabric.global_rank, fabric.world_size) if fabric is not None else (0, 1)
    indices = range(rank, len(dataset), world)
    for start in range(0, len(indices), batch_size):
        sample = collate([dataset[i] for i in indices[start : start + batch_size]]).to(device)
        sums.add(module.errors(potential, sample, create_graph=False), module.loss_config)
    if world > 1:
        sums.values = _summed(fabric, sums.values)
    return sums


class Trainer:
    """One training: everything that changes in the course of it, and the loop.

    Parameters
    ----------
    config
        The configuration.
    quiet
        Show nothing.
    resuming
        `load_state_dict` follows at once: weights need no starting values.
    """

    def __init__(self, config: TrainingConfig, *, quiet: bool = False, resuming: bool = False) -> None:
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
        self.data = data.with_neighbors(potential.cutoff)
        sign = 1
        if config.initial is not None and not resuming:
            told = used_responses(config.loss.stages)
            inherited = start_from(
                potential, config.initial, config.model, self.data.train, balanced="total_charge" in told
            )
            # Labels that tell the sign are to go on with the one that the model has.
            sign = inherited if set(told) & set(SIGNED) else 1
        elif not resuming:
            calibrate(potential, self.data.train, config.model)
        potential.to(self.fabric.device)
        if config.optimizer.short_range_rate == 0:
            potential.backbone.requires_grad_(False)
        self.potential = potential
        self.module = PotentialModule(
            potential,
            config.loss,
            config.optimizer,
            epsilon_infinity=config.model.epsilon_infinity,
            gauge_sign=sign,
            measures_all=data.validation is None and config.optimizer.decay.kind == "plateau",
        )
        self.optimizer = make_optimizer(potential, config.optimizer)
        self.average = AveragedWeights(potential, config.optimizer.ema)
        self.step_module: Callable[[Sample], torch.Tensor] = self.module
        if self.fabric.world_size > 1:
            # The optimizer stays plain: gradients are reduced in the backward pass of the wrapped module.
            self.step_module = self.fabric.setup_module(self.module)
        self.sampler = EpochBatches(
            len(self.data.train), config.batch_size, config.seed, self.fabric.global_rank, self.fabric.world_size
        )
        self.learning_rate = LearningRate(config.optimizer, len(self.sampler), config.epochs)
        self.stopping = EarlyStopping(config.stop, config.loss.stages[-1].from_epoch + config.loss.stages[-1].ramp)
        self.sums = ErrorSums(self.fabric.device)
        self.epoch = self.batch = self.step = 0
        self.history = History(self._columns())
        self.best: dict[str, torch.Tensor] = {}
        self.seconds = 0.0
        self.started = self.last_saved = time.monotonic()
        self.save_seconds = 0.0
        self.interrupt = Interrupt()
        self.report = Reporter(
            config.directory,
            config.epochs,
            len(self.sampler),
            active=self.fabric.is_global_zero,
            quiet=quiet,
        )
        for line in self.data.gaps():
            self.report.say(line)

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
            "gauge_sign": self.module.gauge_sign,
            "average": self.average.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "learning_rate": self.learning_rate.state_dict(),
            "stopping": self.stopping.state_dict(),
            "sums": self.sums.values,
            "history": self.history.state_dict(),
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
        # Checkpoints from before a part of the loss was known lack its row and the sign.
        self.sums.values.zero_()[: len(state["sums"])].copy_(state["sums"])
        self.module.gauge_sign = state.get("gauge_sign", 1)
        self.history.load_state_dict(state["history"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] and self.fabric.device.type == "cuda":
            torch.cuda.set_rng_state_all(state["random_cuda"])

    def save(self) -> None:
        """Write the checkpoint, from the first process."""
        started = time.monotonic()
        if self.fabric.is_global_zero:
            save_checkpoint(self.checkpoint_path, self.state_dict())
        self.last_saved = time.monotonic()
        self.save_seconds = self.last_saved - started

    def _columns(self) -> list[str]:
        """Name what is logged."""
        labels = dict.fromkeys(("energy", *self.module.parts))
        names = ["loss", *(f"{label}_{kind}" for label in labels for kind in ("mae", "rmse"))]
        parts = ["train"] if self.data.validation is None else ["train", "validation"]
        return ["epoch", "learning_rate", *(f"{part}/{name}" for part in parts for name in names), "seconds"]

    def _checkpoint_due(self, epoch_ended: bool) -> bool:
        """Whether to write a checkpoint now.

        Within an epoch by the clock; after it always, unless that would take more than a twentieth of the time.
        """
        passed = time.monotonic() - self.last_saved
        if epoch_ended and (passed > 20 * self.save_seconds or self.epoch >= self.config.epochs):
            return True
        return passed > 60 * self.config.checkpoint_minutes

    # Loop -------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train to the end, or until asked to stop."""
        self.report.start(self.epoch, self.history)
        self.started = time.monotonic() - self.seconds
        self.last_saved = time.monotonic()
        try:
            with self.interrupt.listening():
                asked = False
                while self.epoch < self.config.epochs and not self.stopping.stop and not asked:
                    if not self.train_epoch():
                        return
                    self.end_epoch()
                    asked = self._asked_anywhere()
                    if asked or self.stopping.stop or self._checkpoint_due(epoch_ended=True):
                        self.save()
        finally:
            self.report.close()

    def train_epoch(self) -> bool:
        """Train to the end of the epoch; return whether it was reached, and not left because someone asked for it."""
        self.module.set_loss_epoch(self.epoch)
        self.module.sums = self.sums
        self.sampler.set_epoch(self.epoch, self.batch)
        parameters = [p for p in self.potential.parameters() if p.requires_grad]
        for indices in self.sampler:
            try:
                self.train_step(indices, parameters)
            except ValueError:
                self.check_finite()  # weights that are NaN are the cause, and what can be helped
                raise
            self.batch += 1
            self.step += 1
            self.report.batch(self.epoch, self.batch)
            # Processes must agree on where they stop: with several, only between epochs.
            within = self.fabric.world_size == 1 and self.batch < len(self.sampler)
            if within and (self.interrupt.asked or self._checkpoint_due(epoch_ended=False)):
                self.seconds = time.monotonic() - self.started
                self.check_finite()
                self.save()
                if self.interrupt.asked:
                    return False
        self.seconds = time.monotonic() - self.started
        return True

    def _asked_anywhere(self) -> bool:
        if self.fabric.world_size == 1:
            return self.interrupt.asked
        asked = torch.tensor(float(self.interrupt.asked), device=self.fabric.device)
        return bool(_summed(self.fabric, asked))

    def train_step(self, indices: Sequence[int], parameters: Sequence[torch.nn.Parameter]) -> None:
        """One step of the optimizer."""
        sample = collate([self.data.train[i] for i in indices])
        if self.fabric.device.type != "cpu":
            sample = sample.to(self.fabric.device)
        rate = self.learning_rate.at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)
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
            train = _summed(self.fabric, train)
        row: dict[str, float] = {"epoch": self.epoch, "learning_rate": self.learning_rate.at(self.step)}
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
        self.history.add(row)
        self.report.epoch(row)
        self.epoch += 1
        self.batch = 0
        self.sums.values.zero_()

    # End --------------------------------------------------------------------------------------------------------

    def final_potential(self) -> AugmentedPotential:
        """Return the averaged weights of the best epoch, or of the last."""
        potential: AugmentedPotential = self.average.model  # type: ignore[assignment]
        if self.config.keep == "best" and self.best:
            potential.load_state_dict(self.best)
        return potential

    @property
    def kept_epoch(self) -> int:
        """The epoch (from 0) whose weights are the final ones."""
        return self.stopping.best_epoch if self.config.keep == "best" and self.best else self.epoch - 1

    def metrics(self, potential: AugmentedPotential) -> dict[str, dict[str, float]]:
        """Return the errors of a potential on each part of the data, in the units of `reporting.UNITS`."""
        size = self.config.validation_batch_size
        return {
            name: evaluate(self.module, potential, part, size, self.fabric).metrics()
            for name, part in self.data.parts().items()
        }


def _summed(fabric: Any, values: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over all processes."""
    return fabric.all_reduce(values.clone(), reduce_op="sum")


def _check_same(before: dict[str, Any], config: TrainingConfig) -> None:
    now = config.model_dump(mode="json")
    with contextlib.suppress(ConfigError):  # keys that are gone since: they differ
        before = parse_config(before).model_dump(mode="json")  # keys that are new since: their defaults
    # The cosine spans the whole training: another length is another training.
    free = FREE_KEYS - ({"epochs"} if config.optimizer.decay.kind == "cosine" else set())
    differing = sorted(key for key in now if key not in free and now[key] != before.get(key))
    if differing:
        raise ConfigError(
            f"the checkpoint in {config.directory} was made with other values of {differing}: resume with the "
            f"configuration in {config.directory / 'config.yaml'}, or start under another `name`"
        )
