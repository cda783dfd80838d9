"""MACELES of mace-torch as a backbone: MACE, and the latent charges that its second readouts give."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from farfield.atoms.batch import AtomicBatch
from farfield.hosts.mace import MACEBackbone
from farfield.hosts.mace_models import importing, load_weights
from farfield.potentials.augmented import AugmentedPotential
from farfield.potentials.features import Features
from farfield.potentials.given_charges import GivenCharges


class MACELESBackbone(MACEBackbone):
    """A MACE with a second readout in each place, for latent charges (e): these are the first of its scalars.

    Arguments and further features are those of `MACEBackbone`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        with importing():
            # as MACELES has them: the same kinds as those of the energy, with weights of their own
            self.les_readouts = nn.ModuleList(copy.deepcopy(readout) for readout in self.host.readouts)
        self._widths = [product.linear.irreps_out.dim for product in self.host.products]
        self.n_scalars += 1

    @classmethod
    def from_host(cls, model: nn.Module, *, head: str | None = None) -> Self:
        """Make an adapter of a ``MACELES``, with a copy of its weights; its long range is left out.

        Raises
        ------
        ValueError
            If the model is of another kind, or cannot be rebuilt from its settings.
        """
        _check(model)
        with importing():
            from mace.modules import ScaleShiftMACE

            source: Any = copy.deepcopy(model)
            readouts = source.les_readouts
            kinds = [[type(readout) for readout in held] for held in (readouts, source.readouts)]
            if kinds[0] != kinds[1]:
                raise ValueError(f"the readouts of the charges of this MACELES are {kinds[0]} but must be {kinds[1]}")
            del source.les, source.les_readouts
            source.__class__ = ScaleShiftMACE
            self = super().from_host(source, head=head)
            load_weights(self.les_readouts, readouts.state_dict())
        return self

    def forward(self, batch: AtomicBatch) -> Features:
        """Energy without `reference_energies` (eV) and features; raises as `MACEBackbone.forward`."""
        energies, features = self._run(self.host, batch)
        found = self.scaled(batch.sum_over_atoms(energies), *self._kinds(features))
        return replace(found, scalars=torch.cat([self._charges(features), found.scalars], dim=1))

    def _charges(self, features: Tensor) -> Tensor:
        """Latent charges (e), shape (atoms, 1), from the features of all layers."""
        heads = torch.full((len(features),), self.head, device=features.device)
        layers = features.split(self._widths, dim=1)
        if len(self.les_readouts) == 1:
            layers = layers[-1:]
        found = [readout(layer, heads)[:, self.head] for readout, layer in zip(self.les_readouts, layers, strict=True)]
        return torch.stack(found).sum(0)[:, None]


def potential_of(model: nn.Module, *, head: str | None = None) -> AugmentedPotential:
    """Make a potential of a whole ``MACELES``: its short range, its charges, and the sum that stands in it.

    Parameters
    ----------
    model
        The model, with `farfield.compat.les.Les` for its long range; it stays as it is.
    head
        Which head to take where the model has several.

    Raises
    ------
    ValueError
        If the model is of another kind, or cannot be rebuilt from its settings.
    """
    _check(model)
    settings = model.les.settings()  # type: ignore[union-attr, operator]
    elements = [int(z) for z in model.atomic_numbers]  # type: ignore[union-attr]
    lacking = [z for z in elements if settings["fixed_charges"] and z not in settings["fixed_charges"]]
    if lacking:
        raise ValueError(f"the model has fixed charges of its elements, but none of {lacking}")
    backbone = MACELESBackbone.from_host(model, head=head)
    far = GivenCharges(**settings).to(next(backbone.parameters()).dtype)
    return AugmentedPotential(backbone, far, reference_energies=backbone.reference_energies)


def _check(model: nn.Module) -> None:
    from mace.modules.extensions import MACELES

    if type(model) is not MACELES:
        raise ValueError(f"`model` is a {type(model).__name__} but must be a MACELES")
