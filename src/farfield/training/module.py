"""The Lightning module: what one step is, whatever loop calls it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from farfield.card import EpsilonInfinity
from farfield.datasets.dataset import Sample
from farfield.observables.outputs import in_gauge
from farfield.potentials.augmented import AugmentedPotential
from farfield.training.config import LossConfig, OptimizerConfig
from farfield.training.interactions import interactions_of
from farfield.training.losses import (
    Errors,
    ErrorSums,
    compares_fragments,
    errors_of,
    loss_of,
    used_labels,
    used_responses,
    weights_at,
)
from farfield.training.responses import responses_of


class PotentialModule(LightningModule):
    """A potential, its loss and its optimizer.

    farfield's own loop (`farfield.training.run`) calls it through Lightning Fabric; it also works in a
    ``lightning.Trainer``.

    Parameters
    ----------
    potential
        The potential to train.
    loss
        Loss section of the configuration.
    optimizer
        Optimizer section of the configuration.
    epsilon_infinity
        ε∞ of 3D-periodic systems, where it is known: charges and Born charges of these are physical with it only,
        polarizabilities if it is ``"explicit"``.
    gauge_sign
        Physical over latent sign of the charges, where the loss has labels that tell it.
    measures_all
        Whether errors of training decide something by the weights of the last stage, from the first epoch on.
    """

    def __init__(
        self,
        potential: AugmentedPotential,
        loss: LossConfig,
        optimizer: OptimizerConfig,
        *,
        epsilon_infinity: EpsilonInfinity | None = None,
        gauge_sign: int = 1,
        measures_all: bool = False,
    ) -> None:
        super().__init__()
        self.potential = potential
        self.loss_config = loss
        self.optimizer_config = optimizer
        self.parts: Sequence[str] = used_labels(loss.stages)
        self.responses: Sequence[str] = used_responses(loss.stages)
        self.interacting = compares_fragments(loss.stages)
        self.epsilon_infinity = epsilon_infinity
        self.gauge_sign = gauge_sign
        self.weights = weights_at(loss.stages, 0)
        self.sums: ErrorSums | None = None
        self.measures_all = measures_all

    def set_loss_epoch(self, epoch: int) -> None:
        """Take the loss weights of an epoch."""
        self.weights = weights_at(self.loss_config.stages, epoch)

    def errors(self, potential: AugmentedPotential, sample: Sample, create_graph: bool) -> dict[str, Errors]:
        """Differences of a potential's prediction from the labels."""
        prediction = potential.predict(
            in_gauge(potential, sample.batch, self.gauge_sign),
            forces="forces" in self.parts or "interaction_forces" in self.parts,
            stress="stress" in self.parts,
            create_graph=create_graph,
        )
        responses: dict[str, Tensor] = {}
        if self.interacting:
            responses |= interactions_of(potential, sample, prediction, sign=self.gauge_sign, create_graph=create_graph)
        if self.responses and prediction.far is not None:
            responses |= responses_of(
                potential,
                sample,
                prediction.far,
                self.responses,
                sign=self.gauge_sign,
                epsilon_infinity=self.epsilon_infinity,
                create_graph=create_graph,
            )
        return errors_of(prediction, sample.labels, sample.batch.counts, self.parts, responses)

    def forward(self, sample: Sample, batch_idx: int = 0) -> Tensor:
        """Return the loss of a batch; its errors are added to ``sums`` where that is set."""
        errors = self.errors(self.potential, self._counting(sample), create_graph=True)
        if self.sums is not None:
            self.sums.add(errors, self.loss_config)
        return loss_of(errors, self.weights, self.loss_config)

    def _counting(self, sample: Sample) -> Sample:
        """Leave out Born charges that have no weight yet: they cost several times as much as all the rest."""
        label = sample.labels.get("born_charges")
        if label is None or self.measures_all or self.weights.get("born_charges", 0.0) != 0:
            return sample
        return dataclasses.replace(sample, labels={**sample.labels, "born_charges": torch.full_like(label, torch.nan)})

    def training_step(self, sample: Sample, batch_idx: int = 0) -> Tensor:
        """Return the loss of a batch."""
        return self.forward(sample, batch_idx)

    def validation_step(self, sample: Sample, batch_idx: int = 0) -> Tensor:
        """Return the loss of a batch, without a graph of the parameters."""
        return loss_of(self.errors(self.potential, sample, create_graph=False), self.weights, self.loss_config)

    def transfer_batch_to_device(self, batch: Sample, device: torch.device, dataloader_idx: int) -> Sample:
        """Move a sample to the device."""
        return batch.to(device)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam or AdamW; weight decay acts on matrices only."""
        return make_optimizer(self.potential, self.optimizer_config)


def make_optimizer(model: torch.nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Adam or AdamW of a configuration; weight decay acts on matrices only, not on biases and scales.

    Groups of parameters whose learning rate is another have its ratio under ``"factor"``.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    parts = [(1.0, [p for _, p in named])]
    if config.short_range_rate not in (0.0, 1.0):
        parts = [
            (config.short_range_rate, [p for name, p in named if name.startswith("backbone.")]),
            (1.0, [p for name, p in named if not name.startswith("backbone.")]),
        ]
    groups = []
    for factor, parameters in parts:
        extra = {} if factor == 1.0 else {"factor": factor, "lr": factor * config.learning_rate}
        groups += [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay, **extra},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0, **extra},
        ]
    cls = torch.optim.AdamW if config.kind == "adamw" else torch.optim.Adam
    return cls(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=config.betas,
        amsgrad=config.amsgrad,
        # One kernel for all parameters instead of a dozen small ones per tensor.
        fused=all(p.device.type in ("cpu", "cuda") for _, p in named),
    )
