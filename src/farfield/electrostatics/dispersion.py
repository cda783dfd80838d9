r"""The dispersion solver: the damped 1/r⁶ attraction of latent coefficients, by the sums of the Coulomb solver.

    E = −Σ_{i<j} c_i c_j f(r_ij)                                                    open
    E = −(1/2V) Σ_k f̂(k) |S(k)|² + ½ Σ_i c_i² f(0) ,   S(k) = Σ_i c_i e^{ik·r_i}     periodic, k = 0 included

with f and f̂ of `farfield.electrostatics.dispersion_kernels`. Like that of Gaussian charges, f̂ ends soon, so that there
is no real-space part. 1/r⁶ is short: along open directions of slabs and wires the images are simply kept away.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.electrostatics.checks import check_coefficients
from farfield.electrostatics.cutoff import switched_nodes
from farfield.electrostatics.dispersion_kernels import dispersion_kernel, dispersion_transform
from farfield.electrostatics.distributed import graph_of, shared, sum_over_ranks, to_each_rank, together
from farfield.electrostatics.ewald import EwaldGeometry
from farfield.electrostatics.group_sums import mesh_kernel, positions_and_cells
from farfield.electrostatics.mesh import MeshGeometry
from farfield.electrostatics.operator import join_atoms, join_systems
from farfield.electrostatics.plan import CoulombPlan, EwaldGroup, MeshGroup, OpenGroup
from farfield.electrostatics.planning import make_plan
from farfield.electrostatics.solver import Solver

#: Measured ratio of the relative RMS force error to that of charges in the same sum, with a margin: 4.1 at most, for
#: water, salt-like mixtures, equal and random coefficients, σ = 0.7 … 2 Å, by Ewald and on meshes.
_RATIO = 6.0

#: Images along open directions are this far away (σ, at least 1 Å) times accuracy^(−1/4): the force of a half space
#: full of atoms at a distance z decays as z⁻⁴. Measured on slabs of the same systems: 1.5 would do.
_GAP = 2.0


@dataclass(frozen=True, eq=False)
class DispersionResult:
    """What `Dispersion` gives; everything is differentiable twice in positions, cell and coefficients.

    Attributes
    ----------
    energy
        Energy of each system (eV), shape (systems,), float64.
    """

    energy: Float[Tensor, " systems"]
    _find_atom_energies: Callable[[], Tensor] = dataclasses.field(kw_only=True, repr=False)

    @functools.cached_property
    def atom_energies(self) -> Float[Tensor, " atoms"]:
        """Share of each atom (eV), shape (atoms,); they sum to the energy. Found when first asked for.

        In a process group all ranks have to ask for it, and all their atoms' shares sum to the energy.
        """
        return self._find_atom_energies()


class Dispersion(Solver):
    r"""Sum the damped 1/r⁶ attraction of atoms with latent coefficients.

    Two atoms attract each other by −c_i c_j f(r), f(r) = [1 − (1 + x² + x⁴/2) e^{−x²}]/r⁶ with x = a r and
    a = 1/(√2 σ): smooth down to r = 0, where f = a⁶/6, and 1/r⁶ from about 5σ on. Periodic systems are summed in
    reciprocal space, by Ewald or on a particle mesh; open ones directly, or in a padded cell where that is faster.
    Slabs and wires are padded, too, so far that the images along their open directions err less than the accuracy:
    vacuum in the given cell does not matter.

    All results can be differentiated twice in positions, cell and coefficients; forces and stress are the derivatives
    of the energy. The reciprocal sum ends smoothly, so they are continuous functions of the cell.

    Parameters
    ----------
    smearing
        Damping length σ (Å): a number, or one per system, shape (systems,). No gradient in it.
    accuracy
        Relative RMS error of the forces that the reciprocal sum, and the images along open directions, may have.
        The room to those images grows as accuracy^(−1/4).
    method
        ``"auto"``, ``"open"``, ``"ewald"`` or ``"mesh"``, as in `Coulomb`.
    process_group
        Whose ranks hold the atoms, as in `Coulomb`.

    Raises
    ------
    ValueError
        For a smearing that is not positive, an accuracy outside 1e-12 … 0.1, an unknown method.
    TypeError
        For another object than a process group.

    Examples
    --------
    >>> dispersion = Dispersion(smearing=1.0, accuracy=1e-4)
    >>> energy = dispersion(batch, coefficients).energy  # doctest: +SKIP
    """

    _truncates = False

    def __init__(
        self,
        smearing: float | Float[Tensor, " systems"] = 1.0,
        *,
        accuracy: float = 1e-4,
        method: str = "auto",
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(smearing, accuracy=accuracy, method=method, process_group=process_group)

    def _make_plan(self, batch: AtomicBatch, smearing: np.ndarray, order: int, charged: np.ndarray) -> CoulombPlan:
        gap = _GAP * self.accuracy**-0.25 * max(1.0, float(smearing.max(initial=0.0)))
        return make_plan(batch, smearing, self.accuracy / _RATIO, self.method, gap=gap, ranks=self.process_group)

    def __call__(
        self, batch: AtomicBatch, coefficients: Float[Tensor, " atoms"], plan: CoulombPlan | None = None
    ) -> DispersionResult:
        """Sum the interactions of a batch.

        Parameters
        ----------
        batch
            The batch.
        coefficients
            c of its atoms (eV^½·Å³), of the dtype of the positions: √C₆ of equal atoms. Any sign.
        plan
            What `prepare` gave; None as in `Coulomb`.

        Returns
        -------
        DispersionResult
            Energy and its shares of the atoms.

        Raises
        ------
        ValueError
            For wrong shapes, a plan of another batch or solver and, without a plan, values that make no sense.
        TypeError
            For wrong dtypes.
        """
        frozen = plan is not None
        plan = self._checked_plan(batch, plan)
        with together(self.process_group) as same:
            check_coefficients(coefficients, batch.positions, values=not frozen)
            if self.process_group is not None:
                same.update(graph_of(positions=batch.positions, cell=batch.cell, coefficients=coefficients))
        unchanged, ranks = plan.is_of(batch.cell), self.process_group
        sums = [_SUMS[type(group)](group, batch, ranks, unchanged) for group in plan.groups]
        padded = [part.padding.gather(coefficients) for part in sums]

        def find_atom_energies() -> Tensor:
            blocks = [(s.padding, 0.5 * c * s.potential(c)) for s, c in zip(sums, padded, strict=True)]
            return join_atoms(plan, blocks) if blocks else coefficients.new_zeros(0)

        parts = ((part.padding, part.energy(c)) for part, c in zip(sums, padded, strict=True))
        energy = join_systems(plan, parts, coefficients.device)
        return DispersionResult(energy=energy, _find_atom_energies=find_atom_energies)


class _OpenSum:
    """A group of open systems, summed over pairs."""

    def __init__(self, group: OpenGroup, batch: AtomicBatch, ranks: dist.ProcessGroup | None, unchanged: bool) -> None:
        self.padding, self._ranks = group.padding, ranks
        # Atoms of different ranks stand in different slots.
        components = sum_over_ranks(group.padding.gather(batch.positions), ranks).permute(2, 0, 1)
        squared = (components[..., :, None] - components[..., None, :]).square().sum(0)
        exponent = (0.5**0.5 / group.smearing).to(squared.dtype)[:, None, None]
        others = 1.0 - torch.eye(squared.shape[-1], dtype=squared.dtype, device=squared.device)
        self._kernel = dispersion_kernel(squared, exponent) * others

    def _potential_of(self, whole: Tensor) -> Tensor:
        return -(self._kernel @ whole[..., None]).squeeze(-1)

    def potential(self, coefficients: Tensor) -> Tensor:
        """∂E/∂c of each atom (members, slots)."""
        return to_each_rank(self._potential_of(sum_over_ranks(coefficients, self._ranks)), self._ranks)

    def energy(self, coefficients: Tensor) -> Tensor:
        """Energy of each member (eV), float64."""
        whole = sum_over_ranks(coefficients, self._ranks)
        return 0.5 * (whole * self._potential_of(whole)).sum(1, dtype=torch.float64)


def _attraction(squared: Tensor, smearing: Tensor) -> Tensor:
    return -dispersion_transform(squared, smearing)


class _EwaldSum:
    """A group of systems summed by Ewald."""

    def __init__(self, group: EwaldGroup, batch: AtomicBatch, ranks: dist.ProcessGroup | None, unchanged: bool) -> None:
        self.padding, self._ranks = group.padding, ranks
        positions, cell = positions_and_cells(group, batch, ranks)
        cutoff = group.summed_to(0, shared(cell, ranks))
        self._geometry = EwaldGeometry(
            positions,
            cell,
            group.basis,
            group.smearing,
            group.ranges[0],
            cutoff,
            source_levels=1,
            field_levels=1,
            transform=_attraction,
            ranks=ranks,
        )
        own = _kernel_at_zero(group.smearing) * _self_factor(cutoff)
        self._own = to_each_rank(own.to(positions.dtype), ranks)[:, None]

    def potential(self, coefficients: Tensor) -> Tensor:
        value, _, _ = self._geometry.potential(self._geometry.structure(coefficients, None, None))
        return value + self._own * coefficients

    def energy(self, coefficients: Tensor) -> Tensor:
        energy = self._geometry.energy(self._geometry.structure(coefficients, None, None))
        own = (self._own * coefficients.square()).sum(1, dtype=torch.float64)
        return energy + 0.5 * sum_over_ranks(own, self._ranks)


class _MeshSum:
    """One system summed on a mesh."""

    def __init__(self, group: MeshGroup, batch: AtomicBatch, ranks: dist.ProcessGroup | None, unchanged: bool) -> None:
        self.padding, self._ranks = group.padding, ranks
        positions, cell = positions_and_cells(group, batch, ranks)
        self._geometry = MeshGeometry(
            positions[0],
            cell[0].double(),
            group.basis[0],
            mesh_kernel(group, shared(cell, ranks), 0, positions.dtype, _attraction, unchanged=unchanged),
            group.shapes[0],
            group.orders[0],
            source_degree=0,
            field_degree=0,
            ranks=ranks,
        )
        # Of an atom's interaction with itself the mesh holds all but what accuracy allows.
        self._own = _kernel_at_zero(group.smearing).to(positions.dtype)[:, None]

    def potential(self, coefficients: Tensor) -> Tensor:
        value, _, _ = self._geometry.potential(self._geometry.density(coefficients[0], None, None))
        return value[None] + self._own * coefficients

    def energy(self, coefficients: Tensor) -> Tensor:
        energy = self._geometry.energy(self._geometry.density(coefficients[0], None, None))[None]
        own = (self._own * coefficients.square()).sum(1, dtype=torch.float64)
        return energy + 0.5 * sum_over_ranks(own, self._ranks)


_SUMS: dict[type, Callable[..., _OpenSum | _EwaldSum | _MeshSum]] = {
    OpenGroup: _OpenSum,
    EwaldGroup: _EwaldSum,
    MeshGroup: _MeshSum,
}


def _kernel_at_zero(smearing: Tensor) -> Tensor:
    """f(0) = a⁶/6."""
    return (0.5**0.5 / smearing) ** 6 / 6.0


def _self_factor(cutoff: Tensor) -> Tensor:
    """Share of f(0) that a sum truncated at σ|k| = ``cutoff`` (members,) holds, as for charges: `self_factors`.

    In a large cell ∫ f̂ switch k² dk / ∫ f̂ k² dk, where the whole integral is 2π² f(0) = π²/24 at σ = 1 Å.
    """
    nodes, weights = switched_nodes(cutoff)
    x = cutoff[:, None] * nodes
    one = torch.ones((), dtype=cutoff.dtype, device=cutoff.device)
    density = dispersion_transform(x * x, one) * x * x
    return cutoff * (density @ weights) * (24.0 / math.pi**2)
