"""Everything a potential says of a chunk of systems, physical, under the names that models give it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.electrostatics.multipoles import Multipoles
from farfield.electrostatics.susceptibility import Response
from farfield.observables.born import born_charges, forces_on_periodic_charges
from farfield.observables.moments import dipole_moment, physical, quadrupole_moment, scale_of_atoms
from farfield.observables.polarizability import Screening, atomic_polarizabilities, effective_epsilon, stability
from farfield.potentials.augmented import AugmentedPotential
from farfield.potentials.long_range import LongRangeResult

ENERGETIC = ("energy", "forces", "stress", "short_range_energy", "long_range_energy")
#: Forces that are derivatives of no energy: of a field on the charges along periodic directions.
PULL = "field_forces"
INDUCED = ("induced_charges", "induced_dipoles")
LATENT = ("latent_charges", "latent_dipoles", "latent_quadrupoles")
TOTALS = ("dipole", "quadrupole", "polarization")
MOMENTS = ("charges", "atomic_dipoles", "atomic_quadrupoles", *INDUCED, *LATENT, *TOTALS)
FIELDS = ("potential", "field")
POLARIZABILITIES = ("polarizability", "atomic_polarizabilities")
RESPONSE = (*POLARIZABILITIES, "chi", "k_d", "epsilon_e")
BORN = ("born_charges", "born_effective_charges")


def in_gauge(potential: AugmentedPotential, batch: AtomicBatch, sign: int) -> AtomicBatch:
    """Latent charges add up to the total charge times the gauge sign, where the model is constrained."""
    constrained = potential.long_range is not None and potential.long_range.total_charge == "constraint"
    if sign == 1 or not constrained or batch.total_charge is None:
        return batch
    return batch.replace(total_charge=-batch.total_charge)


def screened_epsilon(
    potential: AugmentedPotential,
    batch: AtomicBatch,
    epsilon: Float[Tensor, " systems"],
    sign: int,
    screening: Screening = "derived",
) -> Float[Tensor, " systems"]:
    """ε_e of a batch with neighbours from its ε∞ and the potential's own response, without a graph.

    See `farfield.observables.effective_epsilon`, which it calls.
    """
    ready = in_gauge(potential, batch, sign)
    with torch.no_grad():
        response = potential.response(ready)
        total = None
        far = potential.long_range
        if far is not None and response is not None and far.linear_response.mode == "scf":
            total = far.total_polarizability(ready, response)
        return effective_epsilon(batch, epsilon, response, total, screening)


class ScaledPotential:
    """A potential whose latent multipoles have a sign and scale: what `farfield.observables` takes as a model.

    Parameters
    ----------
    potential
        The potential.
    sign
        Sign of the gauge.
    scale
        Physical over latent multipoles of the systems of the batches that it will be asked of, shape (systems,).
    """

    def __init__(self, potential: AugmentedPotential, sign: int, scale: Float[Tensor, " systems"]) -> None:
        self.potential, self.sign, self.scale = potential, sign, scale

    @property
    def receptive_radius(self) -> float:
        """Distance up to which an atom feels others through the features (Å)."""
        return self.potential.receptive_radius

    def add_neighbors(self, batch: AtomicBatch) -> AtomicBatch:
        """Return the batch with the neighbours that the potential needs."""
        return self.potential.add_neighbors(batch)

    def multipoles(self, batch: AtomicBatch, *, detach_total: bool = False) -> Multipoles:
        """Latent multipoles that make the polarization, with their graph (see `LongRange.moments`)."""
        ready = in_gauge(self.potential, batch, self.sign)
        return self.potential.moments(ready, self.scale, detach_total=detach_total)

    def atomic_polarizabilities(self, batch: AtomicBatch) -> Float[Tensor, "atoms 3 3"]:
        """Latent polarizability of each atom (e²·Å²/eV), with its graph."""
        return self.potential.atomic_polarizabilities(in_gauge(self.potential, batch, self.sign))

    def outputs(
        self,
        chunk: AtomicBatch,
        wanted: Collection[str],
        response: Response | None,
        *,
        origin: Literal["zero", "centre"],
        sum_rule: bool,
        born: dict[str, Any],
    ) -> dict[str, Any]:
        """Compute properties by name; those that cost nothing beside are given too.

        Parameters
        ----------
        chunk
            Systems with neighbours.
        wanted
            Names out of those of this module.
        response
            Latent response of the chunk.
        origin
            As in `farfield.observables.dipole_moment`.
        sum_rule, born
            Arguments of `farfield.observables.born_charges`; ``born`` are those of forces in a field, too.
        """
        values: dict[str, Any] = {}
        ready = in_gauge(self.potential, chunk, self.sign)
        wanted = set(wanted)
        far: LongRangeResult | None = None
        latent: Multipoles | None = None
        if wanted & {*ENERGETIC, *INDUCED}:
            # Without derivatives `predict` builds a graph only if asked to.
            with torch.no_grad():
                prediction = self.potential.predict(
                    ready, forces="forces" in wanted, stress="stress" in wanted, scale=self.scale
                )
            values = {name: getattr(prediction, name) for name in ENERGETIC}
            latent = prediction.multipoles
            far = prediction.far
        pulled = self.potential.long_range is not None and _pulls_on_periodic_charges(chunk)
        if pulled and wanted & {"forces", PULL}:
            values[PULL] = forces_on_periodic_charges(self, chunk, scale=self.scale, **born).detach()
            if "forces" in wanted:
                values["forces"] = values["forces"] + values[PULL]
        elif PULL in wanted:
            values[PULL] = torch.zeros_like(chunk.positions)
        with torch.no_grad():
            if wanted & {*MOMENTS, *FIELDS}:
                latent = latent or self.potential.multipoles(ready)
                values |= self._moments(chunk, wanted, latent, far, origin)
            if wanted & set(FIELDS) and latent is not None:
                values |= self._fields(chunk, latent)
            if wanted & set(RESPONSE):
                values |= self._answers(chunk, wanted, response)
        for name in wanted & set(BORN):
            values[name] = born_charges(self, chunk, scale=self.scale, sum_rule=sum_rule, **born)
        return values

    def _moments(
        self,
        chunk: AtomicBatch,
        wanted: Collection[str],
        latent: Multipoles,
        result: LongRangeResult | None,
        origin: Literal["zero", "centre"],
    ) -> dict[str, Tensor]:
        def filled(values: Tensor | None, *shape: int) -> Tensor:
            return chunk.positions.new_zeros((chunk.n_atoms, *shape)) if values is None else values

        real = physical(chunk, latent, self.scale)
        induced = None if result is None or result.details is None else result.details.induced
        answer = None if induced is None else physical(chunk, induced, self.scale)
        values = {
            "charges": real.charges,
            "atomic_dipoles": filled(real.dipoles, 3),
            "atomic_quadrupoles": filled(real.quadrupoles, 3, 3),
            "induced_charges": filled(None if answer is None else answer.charges),
            "induced_dipoles": filled(None if answer is None else answer.dipoles, 3),
            "latent_charges": latent.charges,
            "latent_dipoles": filled(latent.dipoles, 3),
            "latent_quadrupoles": filled(latent.quadrupoles, 3, 3),
        }
        if set(wanted) & set(TOTALS):
            far = self.potential.long_range
            if far is not None and far.has_response:
                whole = self.multipoles(chunk) if result is None else far.polarizing(chunk, result)
                real = physical(chunk, whole, self.scale)
            values["dipole"] = dipole_moment(chunk, real, origin=origin)
            values["polarization"] = dipole_moment(chunk, real)
            values["quadrupole"] = quadrupole_moment(chunk, real)
        return values

    def _fields(self, chunk: AtomicBatch, latent: Multipoles) -> dict[str, Tensor]:
        far = self.potential.long_range
        if far is None:
            return {}
        felt = far.coulomb(chunk, latent)
        if felt.potential is None or felt.field is None:
            return {}
        scale = scale_of_atoms(chunk, self.scale)
        return {"potential": felt.potential / scale, "field": felt.field / scale[:, None]}

    def _answers(self, chunk: AtomicBatch, wanted: Collection[str], response: Response | None) -> dict[str, Tensor]:
        chi, k_d = stability(chunk, response or Response())
        values = {"chi": chi, "k_d": k_d, "epsilon_e": self.scale.square()}
        if set(wanted) & set(POLARIZABILITIES):
            atomic = atomic_polarizabilities(self, chunk, scale=self.scale)
            total = chunk.sum_over_atoms(atomic)
            # Symmetric but for rounding and the tolerance of a self-consistent solution.
            values |= {"atomic_polarizabilities": atomic, "polarizability": 0.5 * (total + total.mT)}
        return values


def _pulls_on_periodic_charges(batch: AtomicBatch) -> bool:
    return batch.external_field is not None and bool(batch.pbc.any()) and bool((batch.external_field != 0).any())
