"""AugmentedPotential: a short-range backbone with its far field; energy and its derivatives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from farfield.atoms.batch import AtomicBatch
from farfield.atoms.neighbors import find_neighbors
from farfield.electrostatics.multipoles import Multipoles
from farfield.electrostatics.susceptibility import Response
from farfield.potentials.backbones import backbone_class, kind_of
from farfield.potentials.features import Backbone, Features
from farfield.potentials.given_charges import GivenCharges
from farfield.potentials.long_range import LongRange, LongRangeResult
from farfield.potentials.repulsion import zbl_energy

#: Far fields by the kind that their configuration names; one that names none is the usual one.
_FAR_FIELDS: dict[str | None, type[LongRange]] = {None: LongRange, "given-charges": GivenCharges}


@dataclass(frozen=True, eq=False)
class PotentialOutput:
    """Energies (eV), shape (systems,), float64, and what they were made of, all with their graph.

    ``energy`` is the sum of reference energies of the elements, ``short_range_energy`` and ``long_range_energy``.
    ``far`` is all that the long range found: its permanent multipoles, response, induced multipoles.
    """

    energy: Float[Tensor, " systems"]
    short_range_energy: Float[Tensor, " systems"]
    long_range_energy: Float[Tensor, " systems"]
    multipoles: Multipoles | None
    features: Features
    far: LongRangeResult | None = None


@dataclass(frozen=True, eq=False)
class Prediction:
    """Energy (eV) and its derivatives: forces (eV/Å), shape (atoms, 3), and stress (eV/Å³), shape (systems, 3, 3).

    The stress of a system without three periodic axes is NaN: it has no volume to divide by. ``far`` is as in
    `PotentialOutput`.
    """

    energy: Float[Tensor, " systems"]
    forces: Float[Tensor, "atoms 3"] | None
    stress: Float[Tensor, "systems 3 3"] | None
    short_range_energy: Float[Tensor, " systems"]
    long_range_energy: Float[Tensor, " systems"]
    multipoles: Multipoles | None
    far: LongRangeResult | None = None


class AugmentedPotential(nn.Module):
    """A short-range backbone plus its far field: one energy, of which all else is a derivative.

    Parameters
    ----------
    backbone
        Short-range model that follows the `Backbone` protocol.
    long_range
        The far field; None for the short-range model alone.
    reference_energies
        Energy of each element (eV), by atomic number; kept in float64 whatever the model's dtype.
    zbl
        Add the Ziegler–Biersack–Littmark repulsion below 1.5 Å.

    Raises
    ------
    ValueError
        For a far field in a process group, whose ranks would each add the short-range energy of a part.
    """

    def __init__(
        self,
        backbone: nn.Module,
        long_range: LongRange | None = None,
        *,
        reference_energies: Mapping[int, float] | None = None,
        zbl: bool = False,
    ) -> None:
        super().__init__()
        if long_range is not None and long_range.coulomb.process_group is not None:
            raise ValueError(
                "`long_range` works in a process group but a potential needs whole systems: give a LongRange without "
                "`process_group`, or add up the energies yourself (farfield.electrostatics.distributed)"
            )
        self.backbone = backbone
        self.long_range = long_range
        self.zbl = zbl
        self.reference_energies: dict[int, float] = {}
        self._references = torch.zeros(119, dtype=torch.float64)
        self.set_reference_energies(reference_energies or {})

    @property
    def cutoff(self) -> float:
        """Range of the neighbour list (Å)."""
        reach = 0.0 if self.long_range is None else self.long_range.reach
        return max(float(self.backbone.cutoff), reach)  # type: ignore[arg-type]

    @property
    def receptive_radius(self) -> float:
        """Distance up to which an atom's features feel other atoms (Å)."""
        features = float(self.backbone.receptive_radius)  # type: ignore[arg-type]
        if self.long_range is None:
            return features
        return max(features + self.long_range.bond_cutoff, self.long_range.reach)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        return next(self.parameters()).dtype

    def set_reference_energies(self, energies: Mapping[int, float]) -> None:
        """Set the energies of the elements (eV), by atomic number."""
        self.reference_energies = {int(number): float(value) for number, value in energies.items()}
        self._references = torch.zeros(119, dtype=torch.float64)
        for number, value in self.reference_energies.items():
            self._references[number] = value

    def calibrate(self, batch: AtomicBatch, force_scale: float = 1.0) -> None:
        """Set the starting scales of the backbone, where it has such (see `CACE.calibrate`)."""
        calibrate = getattr(self.backbone, "calibrate", None)
        if calibrate is not None:
            calibrate(batch, force_scale)

    def add_neighbors(self, batch: AtomicBatch) -> AtomicBatch:
        """Return the batch with the neighbours that the backbone needs."""
        return find_neighbors(batch, self.cutoff)

    def forward(self, batch: AtomicBatch, scale: Float[Tensor, " systems"] | None = None) -> PotentialOutput:
        """Energies of a batch with neighbours, and the latent multipoles, differentiable in positions and cell.

        ``scale`` is physical over latent multipoles, which an external field needs (see `LongRange.forward`).
        """
        features: Features = self.backbone(batch)
        short = features.energy.double()
        if self.zbl:
            short = short + zbl_energy(batch)
        far: LongRangeResult | None = None
        long = torch.zeros_like(short)
        if self.long_range is not None:
            far = self.long_range(batch, features, scale)
            long = far.energy.double()
        if self._references.device != batch.positions.device:
            self._references = self._references.to(batch.positions.device)
        reference = batch.sum_over_atoms(self._references[batch.numbers])
        multipoles = None if far is None else far.multipoles
        return PotentialOutput(reference + short + long, short, long, multipoles, features, far)

    def multipoles(self, batch: AtomicBatch, *, detach_total: bool = False) -> Multipoles:
        """Latent multipoles of a batch with neighbours, with their graph and without any Coulomb sum.

        With ``detach_total`` the residual of a constraint on the total charge carries no gradient (see `LongRange`).

        Raises
        ------
        ValueError
            If the potential has no long-range part.
        """
        if self.long_range is None:
            raise ValueError("this potential has no long-range part and so no multipoles: build it with a `LongRange`")
        return self.long_range.multipoles(batch, self.backbone(batch), detach_total=detach_total)

    def moments(
        self,
        batch: AtomicBatch,
        scale: Float[Tensor, " systems"] | None = None,
        *,
        detach_total: bool = False,
    ) -> Multipoles:
        """Latent multipoles that make the polarization, permanent and induced (see `LongRange.moments`).

        Raises
        ------
        ValueError
            If the potential has no long-range part.
        """
        if self.long_range is None:
            return self.multipoles(batch)  # which says why there are none
        return self.long_range.moments(batch, self.backbone(batch), scale, detach_total=detach_total)

    def atomic_polarizabilities(self, batch: AtomicBatch) -> Float[Tensor, "atoms 3 3"]:
        """Latent polarizability of each atom (see `LongRange.atomic_polarizabilities`); zero without response."""
        if self.long_range is None:
            return batch.positions.new_zeros(batch.n_atoms, 3, 3)
        return self.long_range.atomic_polarizabilities(batch, self.backbone(batch))

    def response(self, batch: AtomicBatch) -> Response | None:
        """Latent softness and polarizability of a batch with neighbours, with their graph; None without response."""
        return None if self.long_range is None else self.long_range.response(batch, self.backbone(batch))

    def predict(
        self,
        batch: AtomicBatch,
        *,
        forces: bool = True,
        stress: bool = False,
        create_graph: bool = False,
        scale: Float[Tensor, " systems"] | None = None,
    ) -> Prediction:
        """Energy, forces and stress.

        All of them are derivatives of the energy. What a ``batch.external_field`` does to *charges* along periodic
        directions is none, and not in them: `farfield.Model` adds those forces.

        Parameters
        ----------
        forces, stress
            Which derivatives to take.
        create_graph
            Keep the graph of the derivatives, to train on them.
        scale
            As in `forward`.

        Raises
        ------
        ValueError
            If a stress is asked for in an external field: the work of the field on a cell that is strained depends on
            how it is kept, and on a polarization that is known only up to quanta.
        """
        if stress and batch.external_field is not None and bool((batch.external_field != 0).any()):
            raise ValueError(
                "`stress` is not defined in an external field, where it depends on what is held fixed: leave out the "
                "stress, or `batch.external_field`"
            )
        wanted = forces or stress
        with torch.set_grad_enabled(wanted or torch.is_grad_enabled()):
            if wanted:
                batch = batch.replace(
                    positions=batch.positions.detach().requires_grad_(),
                    cell=batch.cell.detach().requires_grad_(stress),
                )
            out = self(batch, scale)
            force = tensor = None
            if wanted:
                leaves = [batch.positions, batch.cell] if stress else [batch.positions]
                gradients = torch.autograd.grad(
                    out.energy.sum(), leaves, create_graph=create_graph, allow_unused=True, materialize_grads=True
                )
                if forces:
                    force = -gradients[0]
                if stress:
                    tensor = _stress(batch, gradients[0], gradients[1])
        if wanted and not create_graph:
            out = _detached(out)
        return Prediction(
            out.energy, force, tensor, out.short_range_energy, out.long_range_energy, out.multipoles, out.far
        )

    def config(self) -> dict[str, Any]:
        """Return what rebuilds the potential: plain JSON values."""
        return {
            "backbone": {"kind": kind_of(type(self.backbone)), **self.backbone.config()},  # type: ignore[operator]
            "long_range": None if self.long_range is None else _recipe(self.long_range),
            "reference_energies": {str(number): value for number, value in self.reference_energies.items()},
            "zbl": self.zbl,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Rebuild a potential from `config`, with fresh weights.

        Raises
        ------
        ValueError
            If the kind of backbone is not known here.
        """
        settings = dict(config["backbone"])
        backbone = backbone_class(settings.pop("kind")).from_config(settings)
        long_range = config.get("long_range")
        return cls(
            backbone,
            None if long_range is None else _rebuilt(long_range),
            reference_energies={int(k): v for k, v in config.get("reference_energies", {}).items()},
            zbl=config.get("zbl", False),
        )


def _recipe(far: LongRange) -> dict[str, Any]:
    """Give the configuration of a far field, with its kind unless it is the usual one."""
    kind = next((name for name, cls in _FAR_FIELDS.items() if cls is type(far)), None)
    return far.config() if kind is None else {"kind": kind, **far.config()}


def _rebuilt(config: Mapping[str, Any]) -> LongRange:
    settings = dict(config)
    kind = settings.pop("kind", None)
    if kind not in _FAR_FIELDS:
        raise ValueError(f"Unknown far field {kind!r}. Must be one of {[name for name in _FAR_FIELDS if name]}")
    return _FAR_FIELDS[kind].from_config(settings)


def _stress(batch: AtomicBatch, by_positions: Tensor, by_cell: Tensor) -> Tensor:
    """dE/dstrain / V from the gradients in positions and cell; strain maps r to r(1 + ε) and the cell likewise."""
    virial = torch.einsum("sai,saj->sij", batch.cell, by_cell)
    outer = batch.positions[:, :, None] * by_positions[:, None, :]
    virial = virial.index_add(0, batch.system, outer)
    virial = 0.5 * (virial + virial.transpose(-1, -2))
    periodic = batch.pbc.all(-1)
    # divide by 1, not by NaN, where there is no volume: 0/NaN in a backward pass would spread to all parameters
    volume = torch.linalg.det(batch.cell.detach()).abs()
    volume = torch.where(periodic, volume, torch.ones_like(volume))
    return (virial / volume[:, None, None]).masked_fill(~periodic[:, None, None], torch.nan)


def _detached(out: PotentialOutput) -> PotentialOutput:
    far = None if out.far is None else out.far.detached()
    moments = None if far is None else far.multipoles
    return PotentialOutput(
        out.energy.detach(), out.short_range_energy.detach(), out.long_range_energy.detach(), moments, out.features, far
    )


__all__ = ["AugmentedPotential", "Backbone", "PotentialOutput", "Prediction", "backbone_class"]
