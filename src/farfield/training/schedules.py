"""What changes over a training by rule: learning rate, plateaus, early stopping, the average of the weights.

Each is a small object whose whole state is a dictionary of plain numbers or tensors, so that a resumed training goes
on exactly as an uninterrupted one.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from farfield.training.config import DecayConfig, OptimizerConfig, StopConfig


class Patience:
    """Counts epochs without improvement of a number that should fall."""

    def __init__(self, threshold: float = 0.0) -> None:
        self.threshold = threshold
        self.best = math.inf
        self.waited = 0

    def update(self, value: float, counts: bool = True) -> bool:
        """Take the value of one more epoch; return whether it improved. Waiting adds up only where it ``counts``."""
        if value < self.best * (1 - self.threshold) or self.best == math.inf and value < math.inf:
            self.best = value
            self.waited = 0
            return True
        self.waited = self.waited + 1 if counts else 0
        return False

    def state_dict(self) -> dict[str, Any]:
        """State as plain numbers."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state."""
        self.best, self.waited = state["best"], state["waited"]


class LearningRate:
    """The learning rate as a function of the step: linear warm-up times decay.

    Parameters
    ----------
    config
        Optimizer section of the configuration.
    steps_per_epoch, epochs
        Length of the training, which the cosine needs.
    """

    def __init__(self, config: OptimizerConfig, steps_per_epoch: int, epochs: int) -> None:
        self.config = config
        self.steps_per_epoch = max(1, steps_per_epoch)
        self.total_steps = max(1, steps_per_epoch * epochs)
        self.plateau = Patience(config.decay.threshold)
        self.plateau_factor = 1.0

    def at(self, step: int) -> float:
        """Learning rate of a step (the first is step 0)."""
        decay: DecayConfig = self.config.decay
        warm = min(1.0, (step + 1) / (self.config.warmup_steps + 1))
        if decay.kind == "cosine":
            progress = min(1.0, step / self.total_steps)
            factor = decay.minimum + (1 - decay.minimum) * 0.5 * (1 + math.cos(math.pi * progress))
        elif decay.kind == "exponential":
            factor = max(decay.minimum, decay.factor ** (step // self.steps_per_epoch))
        elif decay.kind == "plateau":
            factor = self.plateau_factor
        else:
            factor = 1.0
        return self.config.learning_rate * warm * factor

    def end_epoch(self, monitored: float) -> None:
        """Take the monitored loss of an epoch; lower the rate when it no longer falls."""
        decay = self.config.decay
        if decay.kind != "plateau":
            return
        self.plateau.update(monitored)
        if self.plateau.waited >= decay.patience:
            self.plateau_factor = max(decay.minimum, self.plateau_factor * decay.factor)
            self.plateau.waited = 0

    def state_dict(self) -> dict[str, Any]:
        """State as plain numbers."""
        return {"plateau": self.plateau.state_dict(), "plateau_factor": self.plateau_factor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state."""
        self.plateau.load_state_dict(state["plateau"])
        self.plateau_factor = state["plateau_factor"]


class EarlyStopping:
    """Stops when the monitored loss has not improved for some epochs of the last loss stage; remembers the best."""

    def __init__(self, config: StopConfig | None, first_epoch: int) -> None:
        self.config = config
        self.first_epoch = first_epoch
        self.patience = Patience(0.0)
        self.waiting = Patience(config.threshold if config else 0.0)
        self.best_epoch = -1

    def update(self, value: float, epoch: int) -> bool:
        """Take the monitored loss of an epoch; return whether it is the best so far."""
        self.waiting.update(value, counts=epoch >= self.first_epoch)
        improved = self.patience.update(value)
        if improved:
            self.best_epoch = epoch
        return improved

    @property
    def stop(self) -> bool:
        """Whether to stop now."""
        return self.config is not None and self.waiting.waited >= self.config.patience

    def state_dict(self) -> dict[str, Any]:
        """State as plain numbers."""
        return {
            "best": self.patience.state_dict(),
            "waiting": self.waiting.state_dict(),
            "best_epoch": self.best_epoch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state."""
        self.patience.load_state_dict(state["best"])
        self.waiting.load_state_dict(state["waiting"])
        self.best_epoch = state["best_epoch"]


class AveragedWeights:
    """Exponential moving average of a model's weights, kept in a copy of the model that can be used at any time.

    The decay of update n is min(decay, (1 + n)/(10 + n)): early averages forget the random initial weights.

    Parameters
    ----------
    model
        The model in training.
    decay
        Share of the old average in the new one; None: no average, the copy is the model itself.
    """

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        self.decay = decay
        self.updates = 0
        self.source = model
        self.model = model if decay is None else copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights of one more step into the average; buffers are copied."""
        if self.decay is None:
            return
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        averaged: list[Tensor] = [p.detach() for p in self.model.parameters()]
        current: list[Tensor] = [p.detach() for p in self.source.parameters()]
        get_ema_multi_avg_fn(decay)(averaged, current, self.updates)
        for mine, theirs in zip(self.model.buffers(), self.source.buffers(), strict=True):
            mine.copy_(theirs)

    def state_dict(self) -> dict[str, Any]:
        """State: number of updates and averaged weights."""
        return {"updates": self.updates, "weights": self.model.state_dict() if self.decay is not None else {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state."""
        self.updates = state["updates"]
        if self.decay is not None:
            self.model.load_state_dict(state["weights"])
