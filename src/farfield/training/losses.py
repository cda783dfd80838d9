"""Losses on energies, forces, stress and response labels, and their weights by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from farfield.training.config import (
    ENERGETIC_PARTS,
    INTERACTION_PARTS,
    LONG_RANGE_PARTS,
    PARTS,
    LossConfig,
    StageConfig,
)


def weights_at(stages: Sequence[StageConfig], epoch: int) -> dict[str, float]:
    """Return the weights of the parts of the loss at an epoch; within a ramp they go linearly from the stage before."""
    parts = _weighted(stages)
    current = {part: getattr(stages[0], part) for part in parts}
    for stage in stages:
        if epoch < stage.from_epoch:
            break
        # After `ramp` epochs the weights are those of the stage; without a ramp at once.
        share = 1.0 if stage.ramp == 0 else min(1.0, (epoch - stage.from_epoch + 1) / stage.ramp)
        current = {part: (1 - share) * current[part] + share * getattr(stage, part) for part in parts}
    return current


def final_weights(stages: Sequence[StageConfig]) -> dict[str, float]:
    """Return the weights of the last stage: those by which all epochs are compared."""
    return {part: getattr(stages[-1], part) for part in _weighted(stages)}


def used_labels(stages: Sequence[StageConfig]) -> list[str]:
    """Return the labels that have a weight in some stage, in the order of `PARTS`."""
    return [part for part in PARTS if any(getattr(stage, part) > 0 for stage in stages)]


def _weighted(stages: Sequence[StageConfig]) -> list[str]:
    """Parts that have a weight to speak of: those of every potential, and the others where they are used."""
    used = used_labels(stages)
    return [part for part in PARTS if part in ENERGETIC_PARTS or part in used]


def used_responses(stages: Sequence[StageConfig]) -> list[str]:
    """Return the labels of `LONG_RANGE_PARTS` that have a weight in some stage."""
    return [part for part in used_labels(stages) if part in LONG_RANGE_PARTS]


def compares_fragments(stages: Sequence[StageConfig]) -> bool:
    """Whether a label of `INTERACTION_PARTS` has a weight in some stage."""
    return any(part in INTERACTION_PARTS for part in used_labels(stages))


def penalty(difference: Tensor, kind: str, delta: float) -> Tensor:
    """Return the sum of the penalties of differences d (a scalar in float64).

    ``mse``: d². ``huber``: d² up to ``delta``, delta (2|d| − delta) beyond: twice Huber's function, so that both agree
    for small differences.
    """
    if kind == "mse":
        return difference.square().sum().double()
    zero = torch.zeros_like(difference)
    return 2 * torch.nn.functional.huber_loss(difference, zero, reduction="sum", delta=delta).double()


@dataclass(frozen=True, eq=False)
class Errors:
    """Differences between prediction and label, of one part of the loss.

    Attributes
    ----------
    difference
        Energy per atom (eV/atom), shape (systems,), float64; forces (eV/Å), shape (atoms, 3); stress (eV/Å³), shape
        (systems, 3, 3); interaction energy (eV), shape (systems,), float64, and forces (eV/Å), shape (atoms, 3); total
        charge (e), shape (systems,); dipole (e·Å), shape (systems, 3); charges (e), shape
        (atoms,); polarizability (Å³), shape (systems, 3, 3); or Born charges (e), shape (atoms, 3, 3). Zero where
        there is no label.
    count
        How many of its components have a label; a scalar in float64.
    """

    difference: Float[Tensor, "..."]
    count: Float[Tensor, ""]


def errors_of(
    prediction: Any,
    labels: dict[str, Tensor],
    counts: Tensor,
    parts: Sequence[str],
    responses: Mapping[str, Tensor] | None = None,
) -> dict[str, Errors]:
    """Return the differences of a prediction from the labels, by part; the energy is always there.

    ``responses`` has the parts that are no attributes of the prediction (`farfield.training.responses`, and what
    fragments do to each other).

    Labels that are NaN are not known: nothing flows back from there. A prediction that is NaN is no such thing.
    Total energies are compared in float64, before any rounding: they are 10⁵ times what is to be resolved.
    """
    errors = {}
    for part in dict.fromkeys(("energy", *parts)):
        given = (responses or {}).get(part)
        predicted, label = getattr(prediction, part) if given is None else given, labels[part]
        if predicted.shape != label.shape:  # broadcasting would make a wrong loss of it without a word
            raise ValueError(
                f"the {part} of the prediction has shape {tuple(predicted.shape)}, but its label {tuple(label.shape)}"
            )
        total = part == "energy"
        difference = (predicted.double() - label.double()) / counts.double() if total else predicted - label
        known = ~torch.isnan(label)
        errors[part] = Errors(torch.where(known, difference, 0.0), known.sum(dtype=torch.float64))
    return errors


def loss_of(errors: dict[str, Errors], weights: dict[str, float], config: LossConfig) -> Tensor:
    """Return the weighted loss (a scalar in float64): of each part the mean over the components that have a label.

    Parts of weight zero stay in the graph, as do those without any label: with DDP every parameter then has a gradient
    in every step.
    """
    return sum(
        (
            weights[part]
            * penalty(error.difference, config.kind, getattr(config.delta, part))
            / error.count.clamp(min=1)
            for part, error in errors.items()
        ),
        start=errors["energy"].count.new_zeros(()),
    )


class ErrorSums:
    """Running sums from which mean absolute and root-mean-square errors of an epoch follow, without device syncs."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        # Rows: parts. Columns: number of components, sum of |d|, sum of d², sum of penalties.
        self.values = torch.zeros(len(PARTS), 4, dtype=torch.float64, device=device)

    def add(self, errors: dict[str, Errors], config: LossConfig) -> None:
        """Count the errors of one batch."""
        for part, error in errors.items():
            difference = error.difference.detach().double()
            value = penalty(difference, config.kind, getattr(config.delta, part))
            sums = [error.count, difference.abs().sum(), difference.square().sum(), value]
            self.values[PARTS.index(part)] += torch.stack(sums)

    def metrics(self, values: Tensor | None = None) -> dict[str, float]:
        """Return errors, in thousandths of the units of `Errors`, by names such as ``energy_rmse``."""
        result = {}
        for part, (count, absolute, square, _) in zip(
            PARTS, (self.values if values is None else values).tolist(), strict=True
        ):
            if count:
                result[f"{part}_mae"] = 1e3 * absolute / count
                result[f"{part}_rmse"] = 1e3 * (square / count) ** 0.5
        return result

    def loss(self, weights: dict[str, float], values: Tensor | None = None) -> float:
        """Return the loss over everything that was counted, by given weights."""
        rows = (self.values if values is None else values).tolist()
        return sum(weights[part] * row[3] / row[0] for part, row in zip(PARTS, rows, strict=True) if row[0])
