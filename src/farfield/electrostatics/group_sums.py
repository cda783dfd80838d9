"""The sums over one group of systems: open, by Ewald, on a mesh.

Each takes multipoles in the padded block of its group and gives the energy of every member, or what the multipoles make
at the atoms. Self-interaction and background, which are the same for Ewald and the mesh, are settled here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.distributed as dist
from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.electrostatics.boundary import check_room, padded_cell
from farfield.electrostatics.distributed import shared, sum_over_ranks, to_each_rank
from farfield.electrostatics.ewald import EwaldGeometry, Transform
from farfield.electrostatics.graphs import is_traced
from farfield.electrostatics.lattice import volume_of
from farfield.electrostatics.mesh import MeshGeometry, influence
from farfield.electrostatics.multipoles import Multipoles, traceless
from farfield.electrostatics.open_charges import open_charge_energy
from farfield.electrostatics.open_energy import OpenEnergy, open_energy
from farfield.electrostatics.open_multipoles import OpenPairs, open_potential
from farfield.electrostatics.open_sum import OpenGeometry
from farfield.electrostatics.plan import EwaldGroup, MeshGroup, OpenGroup
from farfield.units import COULOMB_CONSTANT

#: 2 k_e/√(2π): potential of a unit Gaussian charge of σ = 1 Å at its own centre (V·Å/e).
_SELF_POTENTIAL = 2.0 * COULOMB_CONSTANT / math.sqrt(2.0 * math.pi)


def pair_energies(multipoles: Multipoles, potential: Tensor, gradient: Tensor | None, second: Tensor | None) -> Tensor:
    """½ L φ of each atom: its share of the energy (eV), shape (atoms,), from the derivatives of the potential."""
    total = multipoles.charges * potential
    if multipoles.dipoles is not None and gradient is not None:
        total = total + (multipoles.dipoles * gradient).sum(-1)
    if multipoles.quadrupoles is not None and second is not None:
        total = total + 0.5 * (multipoles.quadrupoles * second).sum((-2, -1))
    return 0.5 * total


def _self_potential(
    multipoles: Multipoles, smearing: Tensor, factors: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Potential of each atom at its own centre, with gradient and traceless second derivatives.

    They are the derivatives in q, u and (twice) Q of E_self = k_e/√(2π) [q²/σ + u²/3σ³ + Q:Q/10σ⁵], each order times
    one of the ``factors`` (members, 3); ``smearing`` has the shape (members, 1).
    """
    value, u, t = multipoles.charges * (_SELF_POTENTIAL * factors[:, :1] / smearing), None, None
    if multipoles.dipoles is not None:
        u = multipoles.dipoles * (_SELF_POTENTIAL * factors[:, 1:2] / 3.0 / smearing**3)[..., None]
    if multipoles.quadrupoles is not None:
        t = multipoles.quadrupoles * (_SELF_POTENTIAL * factors[:, 2:] / 5.0 / smearing**5)[..., None, None]
    return value, u, t


def _add(left: Tensor | None, right: Tensor | None, scale: float = 1.0) -> Tensor | None:
    return left if left is None or right is None else torch.add(left, right, alpha=scale)


class OpenSum:
    """A group of open systems. Every rank of a process group gets all of their atoms and sums over all pairs."""

    def __init__(
        self,
        group: OpenGroup,
        batch: AtomicBatch,
        order: int,
        levels: int,
        self_interaction: bool,
        ranks: dist.ProcessGroup | None,
    ) -> None:
        self.padding, self._levels, self._order = group.padding, levels, order
        self._ranks = ranks
        # Atoms of different ranks stand in different slots.
        self._positions = sum_over_ranks(group.padding.gather(batch.positions), ranks)
        self._group, self._self_interaction = group, self_interaction
        self._pairs: OpenPairs | None = None
        if OpenPairs.suit(self._positions):
            self._pairs = OpenPairs(group.padding, group.smearing, self._positions.dtype, whole=ranks is None)
        self._geometry: OpenGeometry | None = None
        self._with_graph = torch.is_grad_enabled()

    def _whole(self, multipoles: Multipoles) -> Multipoles:
        """Multipoles of the atoms of all ranks."""
        if self._ranks is None:
            return multipoles
        given = (multipoles.charges, multipoles.dipoles, multipoles.quadrupoles)
        charges, *others = (None if part is None else sum_over_ranks(part, self._ranks) for part in given)
        assert charges is not None  # narrows the type
        return Multipoles(charges, *others)

    def _own(self, multipoles: Multipoles) -> tuple[Tensor, Tensor | None, Tensor | None]:
        smearing = self._group.smearing.to(self._positions.dtype)[:, None]
        return _self_potential(multipoles, smearing, torch.ones_like(smearing).expand(-1, 3))

    def _potential_of(self, whole: Multipoles, levels: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        value, gradient, second = self._potential_of_others(whole, levels)
        if self._self_interaction:
            own = self._own(whole)
            return value + own[0], _add(gradient, own[1]), _add(second, own[2])
        return value, gradient, second

    def _potential_of_others(self, whole: Multipoles, levels: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        q, u, t = whole.charges, whole.dipoles, whole.quadrupoles
        if self._pairs is not None:
            return open_potential(self._pairs, self._positions, q, u, t, levels)
        if self._geometry is None:
            # The first use may be a solution without gradients; later ones need the graph of the positions.
            with torch.set_grad_enabled(self._with_graph):
                highest = self._order + max(self._levels, self._order + 1) - 1
                self._geometry = OpenGeometry(self._positions, self._group.smearing, highest)
        value, gradient, second = self._geometry.potential(q, u, t, levels)
        return value, gradient, None if second is None else traceless(second)

    def potential(self, multipoles: Multipoles) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Potential, gradient and traceless second derivatives at the atoms, (members, slots, …)."""
        value, gradient, second = self._potential_of(self._whole(multipoles), self._levels)
        return (
            to_each_rank(value, self._ranks),
            None if gradient is None else to_each_rank(gradient, self._ranks),
            None if second is None else to_each_rank(second, self._ranks),
        )

    def energy(self, multipoles: Multipoles) -> Tensor:
        """Energy of each member (eV), float64."""
        whole = self._whole(multipoles)
        q, u, t = whole.charges, whole.dipoles, whole.quadrupoles
        if self._pairs is not None:
            energy = open_energy(self._pairs, self._positions, q, u, t).energy
        elif self._order == 0:
            energy = open_charge_energy(self._positions, q, self._group.smearing)
        else:
            return pair_energies(whole, *self._potential_of(whole, self._order + 1)).sum(1, dtype=torch.float64)
        if self._self_interaction:
            energy = energy + pair_energies(whole, *self._own(whole)).sum(1, dtype=torch.float64)
        return energy

    def energy_and_potential(
        self, multipoles: Multipoles
    ) -> tuple[Tensor, tuple[Tensor, Tensor | None, Tensor | None]]:
        """Energy of each member and what `potential` gives, together; not in a process group."""
        value, gradient, second = self._potential_of(multipoles, max(self._levels, self._order + 1))
        energy = pair_energies(multipoles, value, gradient, second).sum(1, dtype=torch.float64)
        return energy, (value, gradient if self._levels > 1 else None, second if self._levels > 2 else None)

    @property
    def finds_answers(self) -> bool:
        """Whether `one_shot` can be asked: the compiled kernels alone find an answer with what it answers to."""
        return self._pairs is not None and not self._self_interaction

    def one_shot(
        self, multipoles: Multipoles, softness: Tensor | None, polarizability: Tensor | None, *, conserve_charge: bool
    ) -> OpenEnergy:
        """Energy of each member with what its atoms answer in one shot; where `finds_answers`."""
        assert self._pairs is not None  # narrows the type
        q, u, t = multipoles.charges, multipoles.dipoles, multipoles.quadrupoles
        given = (q, u, t, softness, polarizability)
        return open_energy(self._pairs, self._positions, *given, conserved=conserve_charge)


def positions_and_cells(
    group: EwaldGroup | MeshGroup, batch: AtomicBatch, ranks: dist.ProcessGroup | None = None
) -> tuple[Tensor, Tensor]:
    """Positions (members, slots, 3) and cells (members, 3, 3) of a group, the cells padded along open directions."""
    cell = batch.cell.index_select(0, group.padding.systems)
    positions = group.padding.gather(batch.positions)
    if group.truncation is None:
        return positions, cell
    if positions.device.type == "cpu" and not is_traced(positions):  # elsewhere it would wait for the device
        check_room(positions, group.padding.mask, cell, group.padding.systems, group.truncation, ranks)
    return positions, padded_cell(cell.double(), group.truncation)


class _ReciprocalSum(ABC):
    """Systems summed in reciprocal space: what Ewald and the mesh have in common.

    Parameters
    ----------
    group
        The systems.
    batch
        Their batch.
    background
        As in `Coulomb`.
    ranks
        The process group whose ranks hold the other atoms of the systems.
    """

    def __init__(
        self,
        group: EwaldGroup | MeshGroup,
        batch: AtomicBatch,
        background: str,
        ranks: dist.ProcessGroup | None,
    ) -> None:
        self.padding, self._ranks = group.padding, ranks
        self._positions, self._cell = positions_and_cells(group, batch, ranks)
        dtype = self._positions.dtype
        self._smearing = group.smearing.to(dtype)[:, None]
        #: Shares of the self-energy that the sum holds and that are subtracted, (members, 3); None to keep them.
        self._factors: Tensor | None = None
        # −π k_e σ² Q²/V turns the background that neutralizes Gaussians into the one of point charges.
        self._shift = None
        if background == "point" and group.truncation is None:
            volume = volume_of(shared(self._cell.double(), ranks))
            self._shift = -math.pi * COULOMB_CONSTANT * group.smearing**2 / volume

    @abstractmethod
    def _sum_potential(self, multipoles: Multipoles) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Potential, gradient and second derivatives at the atoms, self-interaction included."""

    @abstractmethod
    def _sum_energy(self, multipoles: Multipoles) -> Tensor:
        """Energy of each member (eV), float64, self-interaction included."""

    @abstractmethod
    def _sum_both(self, multipoles: Multipoles) -> tuple[Tensor, tuple[Tensor, Tensor | None, Tensor | None]]:
        """Both from one sum over the atoms: gathering what the energy does not need is left out."""

    def potential(self, multipoles: Multipoles) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return self._potential_less(multipoles, *self._sum_potential(multipoles))

    def energy(self, multipoles: Multipoles) -> Tensor:
        return self._energy_less(multipoles, self._sum_energy(multipoles))

    def energy_and_potential(
        self, multipoles: Multipoles
    ) -> tuple[Tensor, tuple[Tensor, Tensor | None, Tensor | None]]:
        """Energy of each member and what `potential` gives, together."""
        energy, found = self._sum_both(multipoles)
        return self._energy_less(multipoles, energy), self._potential_less(multipoles, *found)

    def _potential_less(
        self, multipoles: Multipoles, value: Tensor, gradient: Tensor | None, second: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Potential of the others, with the background wanted."""
        second = None if second is None else traceless(second)
        if self._shift is not None:
            q = multipoles.charges
            shift = (2.0 * self._shift).to(q.dtype) * sum_over_ranks(q.sum(1), self._ranks)
            value = value + to_each_rank(shift, self._ranks)[:, None]
        if self._factors is not None:
            own = _self_potential(multipoles, self._smearing, self._factors)
            return value - own[0], _add(gradient, own[1], -1.0), _add(second, own[2], -1.0)
        return value, gradient, second

    def _energy_less(self, multipoles: Multipoles, energy: Tensor) -> Tensor:
        """Energy without self-interaction, with the background wanted."""
        if self._shift is not None:
            energy = energy + self._shift * sum_over_ranks(multipoles.charges.sum(1), self._ranks).double() ** 2
        if self._factors is not None:
            own = _self_potential(multipoles, self._smearing, self._factors)
            energy = energy - sum_over_ranks(pair_energies(multipoles, *own).sum(1, dtype=torch.float64), self._ranks)
        return energy


class EwaldSum(_ReciprocalSum):
    """A group of systems summed by Ewald."""

    def __init__(
        self,
        group: EwaldGroup,
        batch: AtomicBatch,
        order: int,
        levels: int,
        background: str,
        self_interaction: bool,
        ranks: dist.ProcessGroup | None,
    ) -> None:
        super().__init__(group, batch, background, ranks)
        cutoff = group.summed_to(order, shared(self._cell, ranks))
        if not self_interaction:
            self._factors = to_each_rank(group.self_factors_of(order, cutoff).to(self._positions.dtype), ranks)
        self._geometry = EwaldGeometry(
            self._positions,
            self._cell,
            group.basis,
            group.smearing,
            group.ranges[order],
            cutoff,
            source_levels=order + 1,
            field_levels=levels,
            truncation=group.truncation,
            ranks=ranks,
        )

    def _structure(self, multipoles: Multipoles) -> Tensor:
        return self._geometry.structure(multipoles.charges, multipoles.dipoles, multipoles.quadrupoles)

    def _sum_potential(self, multipoles: Multipoles) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return self._geometry.potential(self._structure(multipoles))

    def _sum_energy(self, multipoles: Multipoles) -> Tensor:
        return self._geometry.energy(self._structure(multipoles))

    def _sum_both(self, multipoles: Multipoles) -> tuple[Tensor, tuple[Tensor, Tensor | None, Tensor | None]]:
        structure = self._structure(multipoles)
        return self._geometry.energy(structure), self._geometry.potential(structure)


class MeshSum(_ReciprocalSum):
    """One system summed on a mesh."""

    def __init__(
        self,
        group: MeshGroup,
        batch: AtomicBatch,
        order: int,
        levels: int,
        background: str,
        self_interaction: bool,
        ranks: dist.ProcessGroup | None,
        *,
        unchanged: bool,
    ) -> None:
        # Of a Gaussian's interaction with itself the mesh holds all but what accuracy allows.
        super().__init__(group, batch, background, ranks)
        if not self_interaction:
            self._factors = self._positions.new_ones(1, 3)
        self._geometry = MeshGeometry(
            self._positions[0],
            self._cell[0].double(),
            group.basis[0],
            mesh_kernel(group, shared(self._cell, ranks), order, self._positions.dtype, unchanged=unchanged),
            group.shapes[order],
            group.orders[order],
            source_degree=order,
            field_degree=levels - 1,
            ranks=ranks,
        )

    def _density(self, multipoles: Multipoles) -> Tensor:
        dipoles, quadrupoles = multipoles.dipoles, multipoles.quadrupoles
        return self._geometry.density(
            multipoles.charges[0],
            None if dipoles is None else dipoles[0],
            None if quadrupoles is None else quadrupoles[0],
        )

    def _sum_potential(self, multipoles: Multipoles) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return _as_block(*self._geometry.potential(self._density(multipoles)))

    def _sum_energy(self, multipoles: Multipoles) -> Tensor:
        return self._geometry.energy(self._density(multipoles))[None]

    def _sum_both(self, multipoles: Multipoles) -> tuple[Tensor, tuple[Tensor, Tensor | None, Tensor | None]]:
        energy, found = self._geometry.energy_and_potential(self._density(multipoles))
        return energy[None], _as_block(*found)


def _as_block(
    value: Tensor, gradient: Tensor | None, second: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Give what one system has the shape of a block of members."""
    return value[None], None if gradient is None else gradient[None], None if second is None else second[None]


def mesh_kernel(
    group: MeshGroup,
    cell: Tensor,
    order: int,
    dtype: torch.dtype,
    transform: Transform | None = None,
    *,
    unchanged: bool,
) -> Tensor:
    """Influence function of a system: that of the plan where its cell is still the one of the plan.

    ``transform`` is that of another interaction than Coulomb's, which is summed with its images along open directions.
    ``unchanged`` says that the cell is known to be that of the plan, whose values are compared otherwise.
    """

    def make(cell: Tensor) -> Tensor:
        reduced = group.basis[0] @ cell[0].double()
        truncation = group.truncation if transform is None else None
        kernel = influence(reduced, group.smearing[0], group.shapes[order], group.orders[order], truncation, transform)
        return kernel.to(dtype)

    # A graph is good for other cells, too.
    if is_traced(cell) or (cell.requires_grad and torch.is_grad_enabled()):
        return make(cell)
    if not unchanged:
        # Comparing cells waits for the device; on others than the CPU making it anew is cheap.
        unchanged = cell.device.type == "cpu" and torch.equal(cell.double(), group.cell)
    if not unchanged:
        return make(cell.detach())
    key = (order, dtype)
    if key not in group.kernels:
        # What is made under inference mode could not enter a graph later.
        with torch.inference_mode(False), torch.no_grad():
            group.kernels[key] = make(group.cell.clone())
    return group.kernels[key]
