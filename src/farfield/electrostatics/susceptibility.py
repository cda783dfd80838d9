r"""What atoms answer to a potential: softness and polarizability, and the linear map K that they make.

    K (φ, g) = (κ (φ − μ), α·g) ,   μ = Σκφ/Σκ of each system where its charge is conserved, else 0 ,

from values of a potential and its gradient at the atoms to charges and dipoles. K is symmetric and positive
semidefinite, and induced multipoles are m = −K f of the potentials f that the atoms feel. Potentials and multipoles
are laid out as columns: (atoms, columns), the charge's first (if there is κ), then three of the dipole (if there is α).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.electrostatics.multipoles import Multipoles


@dataclass(frozen=True, eq=False)
class Response:
    """How strongly the charges and dipoles of atoms follow the potential and field that they feel.

    Attributes
    ----------
    softness
        κ ≥ 0 (e²/eV), shape (atoms,): Δq = −κ (φ − μ). None where no charges are induced.
    polarizability
        α (e²·Å²/eV; times k_e it is a volume in Å³), shape (atoms,) or (atoms, 3, 3), not negative or symmetric
        positive semidefinite: Δu = α E. None where no dipoles are induced.
    """

    softness: Float[Tensor, " atoms"] | None = None
    polarizability: Float[Tensor, " atoms"] | Float[Tensor, "atoms 3 3"] | None = None

    def replace(self, **changes: object) -> Response:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def detached(self) -> Response:
        """Return the same without a graph."""
        return Response(
            None if self.softness is None else self.softness.detach(),
            None if self.polarizability is None else self.polarizability.detach(),
        )


class Susceptibility:
    """The map K of a batch; see the module.

    Parameters
    ----------
    batch
        The batch.
    response
        κ and α of its atoms.
    conserve_charge
        Whether the induced charges of each system add up to zero.
    """

    def __init__(self, batch: AtomicBatch, response: Response, conserve_charge: bool) -> None:
        self._batch, self._response = batch, response
        self.has_charges = response.softness is not None
        self.has_dipoles = response.polarizability is not None
        self._share: Tensor | None = None
        if conserve_charge and response.softness is not None:
            total = batch.sum_over_atoms(response.softness)
            # A system without softness has no μ; the 1 keeps its derivative finite.
            total = torch.where(total > 0, total, torch.ones_like(total))
            self._share = response.softness.double() / total[batch.system]

    @property
    def system(self) -> Int[Tensor, " atoms"]:
        """Index of the system of each atom."""
        return self._batch.system

    def join(self, charge: Tensor | None, dipole: Tensor | None) -> Float[Tensor, "atoms columns"]:
        """Columns from values (atoms,) that belong to charges and (atoms, 3) that belong to dipoles."""
        parts = []
        if self.has_charges and charge is not None:
            parts.append(charge[:, None])
        if self.has_dipoles and dipole is not None:
            parts.append(dipole)
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def split(self, columns: Float[Tensor, "atoms columns"]) -> tuple[Tensor | None, Tensor | None]:
        """Give the values that belong to charges (atoms,) and to dipoles (atoms, 3)."""
        start = int(self.has_charges)
        return columns[:, 0] if self.has_charges else None, columns[:, start:] if self.has_dipoles else None

    def multipoles(self, columns: Float[Tensor, "atoms columns"]) -> Multipoles:
        """Multipoles that columns mean, charges zero where none are induced."""
        charges, dipoles = self.split(columns)
        return Multipoles(columns.new_zeros(len(columns)) if charges is None else charges, dipoles)

    def project(self, potentials: Float[Tensor, "atoms columns"]) -> Float[Tensor, "atoms columns"]:
        """Potentials less μ, where charge is conserved: the part that K sees."""
        if self._share is None:
            return potentials
        potential, gradient = self.split(potentials)
        assert potential is not None  # narrows the type
        mean = self._batch.sum_over_atoms(self._share * potential)
        return self.join(potential - mean.to(potential.dtype)[self.system], gradient)

    def local(self, potentials: Float[Tensor, "atoms columns"]) -> Float[Tensor, "atoms columns"]:
        """(κ φ, α·g) of each atom by itself: K of potentials that are projected."""
        potential, gradient = self.split(potentials)
        softness, alpha = self._response.softness, self._response.polarizability
        if softness is not None and potential is not None:
            potential = softness * potential
        if alpha is not None and gradient is not None:
            gradient = alpha[:, None] * gradient if alpha.ndim == 1 else (alpha * gradient[:, None, :]).sum(2)
        return self.join(potential, gradient)

    def __call__(self, potentials: Float[Tensor, "atoms columns"]) -> Float[Tensor, "atoms columns"]:
        """Apply K."""
        return self.local(self.project(potentials))

    def product(self, left: Tensor, right: Tensor) -> Float[Tensor, " systems"]:
        """Inner product of two sets of columns, one number for each system, float64."""
        return self._batch.sum_over_atoms((left.double() * right.double()).sum(1))
