"""What a response gives: energies, what is induced, and what the atoms feel; made when asked for."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.electrostatics.multipoles import Multipoles
from farfield.electrostatics.operator import OneShot


@dataclass(frozen=True, eq=False)
class Parts:
    """What an energy is made of."""

    response_energy: Tensor
    potential: Tensor
    field: Tensor | None
    find_induced: Callable[[], Multipoles]
    find_shares: Callable[[Multipoles], tuple[Tensor, Tensor]]

    def detached(self) -> Parts:
        """Return the same without any graph."""
        with torch.no_grad():
            bare = self.find_induced().detached()
        shares = tuple(share.detach() for share in self.find_shares(bare))
        return Parts(
            response_energy=self.response_energy.detach(),
            potential=self.potential.detach(),
            field=None if self.field is None else self.field.detach(),
            find_induced=lambda: bare,
            find_shares=lambda _: (shares[0], shares[1]),
        )


@dataclass(frozen=True, eq=False)
class ResponseResult:
    """Energies (eV), shape (systems,), float64, and what they are made of, with its graph; all of it latent.

    What stands behind the energy is made when it is first asked for, where the energy could do without.

    Attributes
    ----------
    energy
        E_total, of which all else is a derivative.
    field_energy
        −F·P_perm (without F·Σq̃r along periodic directions).
    iterations
        Steps of the self-consistent solution, 0 for one shot.
    residual
        What is left of the self-consistent equations, relative, shape (systems,).
    """

    energy: Float[Tensor, " systems"]
    field_energy: Float[Tensor, " systems"]
    iterations: int
    residual: Float[Tensor, " systems"]
    _find_parts: Callable[[], Parts] = dataclasses.field(kw_only=True, repr=False)
    _find_bare_parts: Callable[[], Parts] | None = dataclasses.field(default=None, kw_only=True, repr=False)
    # What is found later has the graph that the energy has, whatever the mode of whoever asks first.
    _with_graph: bool = dataclasses.field(default_factory=torch.is_grad_enabled, kw_only=True, repr=False)

    def detached(self) -> ResponseResult:
        """Return the same without any graph."""
        bare = self._parts.detached() if self._find_bare_parts is None else self._find_bare_parts()
        return dataclasses.replace(
            self,
            energy=self.energy.detach(),
            field_energy=self.field_energy.detach(),
            _find_parts=lambda: bare,
            _find_bare_parts=None,
        )

    @functools.cached_property
    def _parts(self) -> Parts:
        with torch.set_grad_enabled(self._with_graph):
            return self._find_parts()

    @property
    def permanent_energy(self) -> Float[Tensor, " systems"]:
        """Energy of the permanent multipoles among themselves."""
        return self.energy - self.response_energy - self.field_energy

    @property
    def response_energy(self) -> Float[Tensor, " systems"]:
        """U_κ + U_α, or what the self-consistent minimum adds."""
        return self._parts.response_energy

    @property
    def potential(self) -> Float[Tensor, " atoms"]:
        """Potential of the permanent multipoles at the atoms (V), shape (atoms,), without the external field."""
        return self._parts.potential

    @property
    def field(self) -> Float[Tensor, "atoms 3"] | None:
        """Field of the permanent multipoles at the atoms (V/Å), shape (atoms, 3), without the external field.

        None where no dipoles are induced and none are given.
        """
        return self._parts.field

    @functools.cached_property
    def induced(self) -> Multipoles:
        """Induced charges Δq (e) and dipoles Δu (e·Å, None without α), differentiable twice."""
        with torch.set_grad_enabled(self._with_graph):
            return self._parts.find_induced()

    @property
    def charge_energy(self) -> Float[Tensor, " systems"]:
        """U_κ = ½ Σ Δq (φ − F·r): what the induced charges share of the response energy."""
        return self._parts.find_shares(self.induced)[0]

    @property
    def dipole_energy(self) -> Float[Tensor, " systems"]:
        """U_α = −½ Σ Δu·(E + F): what the induced dipoles share of the response energy."""
        return self._parts.find_shares(self.induced)[1]


def parts_of(batch: AtomicBatch, found: OneShot) -> Parts:
    """Parts of an energy that was found at once with its response, without a field: what was found with it."""
    charges = torch.zeros_like(found.potential) if found.charges is None else found.charges
    by_charges = batch.sum_over_atoms(0.5 * charges.double() * found.potential.double())
    by_dipoles = torch.zeros_like(by_charges)
    if found.dipoles is not None and found.gradient is not None:
        by_dipoles = batch.sum_over_atoms(0.5 * (found.dipoles.double() * found.gradient.double()).sum(1))
    induced = Multipoles(charges, found.dipoles)
    return Parts(
        response_energy=by_charges + by_dipoles,
        potential=found.potential,
        field=None if found.gradient is None else -found.gradient,
        find_induced=lambda: induced,
        find_shares=lambda _: (by_charges, by_dipoles),
    )
