r"""The linear, self-adjoint operator A from multipoles to the potential they make at the atoms, E = ½⟨m, A m⟩.

Everything that depends on positions and cells alone is made once, when the operator is built, and reused for each set
of multipoles it is applied to. What a response or a self-consistent solution needs is this class; `Coulomb` wraps it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.electrostatics.checks import check_multipole_shapes
from farfield.electrostatics.distributed import graph_of, together
from farfield.electrostatics.group_sums import EwaldSum, MeshSum, OpenSum
from farfield.electrostatics.multipoles import Multipoles
from farfield.electrostatics.padding import Padding
from farfield.electrostatics.plan import CoulombPlan, MeshGroup, OpenGroup
from farfield.electrostatics.susceptibility import Response


def multipole_order(multipoles: Multipoles) -> int:
    """0 for charges alone, 1 with dipoles, 2 with quadrupoles."""
    return 2 if multipoles.quadrupoles is not None else 1 if multipoles.dipoles is not None else 0


def _gathered(padding: Padding, values: Tensor | None) -> Tensor | None:
    return None if values is None else padding.gather(values)


def _padded(padding: Padding, multipoles: Multipoles) -> Multipoles:
    return Multipoles(
        charges=padding.gather(multipoles.charges),
        dipoles=_gathered(padding, multipoles.dipoles),
        quadrupoles=_gathered(padding, multipoles.quadrupoles),
    )


class OneShot(NamedTuple):
    """Energies with one-shot response, and what the atoms of a batch feel and answer, without a graph.

    Attributes
    ----------
    energy
        ½⟨m, A m⟩ − ½⟨A m, K A m⟩ of each system (eV), float64, shape (systems,), differentiable to any order.
    potential, gradient
        Those of the permanent multipoles, shapes (atoms,) and (atoms, 3); None where nobody needs the gradient.
    charges, dipoles
        Induced ones, same shapes; None where none are induced.
    """

    energy: Float[Tensor, " systems"]
    potential: Float[Tensor, " atoms"]
    gradient: Float[Tensor, "atoms 3"] | None
    charges: Float[Tensor, " atoms"] | None
    dipoles: Float[Tensor, "atoms 3"] | None


class Potentials(NamedTuple):
    """What multipoles make at the atoms: potential (V), field (V/Å) and traceless field gradient (V/Å²)."""

    potential: Float[Tensor, " atoms"]
    field: Float[Tensor, "atoms 3"] | None
    field_gradient: Float[Tensor, "atoms 3 3"] | None


class CoulombOperator:
    """The operator A of one batch; made by `Coulomb.operator`.

    Parameters
    ----------
    batch
        The batch.
    plan
        Its plan.
    order
        Highest multipoles it will be applied to: 0 charges, 1 dipoles, 2 quadrupoles.
    levels
        What is wanted: 1 the potential, 2 the field too, 3 the field gradient too.
    background, self_interaction
        As in `Coulomb`.
    ranks
        The process group whose ranks hold the other atoms: the operator is then applied to the multipoles of all and
        gives what they make at the atoms of the batch.
    """

    def __init__(
        self,
        batch: AtomicBatch,
        plan: CoulombPlan,
        *,
        order: int,
        levels: int,
        background: str,
        self_interaction: bool,
        ranks: dist.ProcessGroup | None = None,
    ) -> None:
        self._ranks = ranks
        self._plan, self._order = plan, order
        self._positions = batch.positions
        self._sums: list[OpenSum | EwaldSum | MeshSum] = []
        for group in plan.groups:
            if isinstance(group, OpenGroup):
                self._sums.append(OpenSum(group, batch, order, levels, self_interaction, ranks))
            elif isinstance(group, MeshGroup):
                unchanged = plan.is_of(batch.cell)
                self._sums.append(
                    MeshSum(group, batch, order, levels, background, self_interaction, ranks, unchanged=unchanged)
                )
            else:
                self._sums.append(EwaldSum(group, batch, order, levels, background, self_interaction, ranks))

    def __call__(self, multipoles: Multipoles) -> Potentials:
        """Apply A: potential, field and field gradient of the other atoms at each atom.

        Raises
        ------
        ValueError
            For a wrong shape, or multipoles of a higher order than the operator was made for.
        """
        with together(self._ranks) as same:
            check_multipole_shapes(multipoles, self._positions)
            given = multipole_order(multipoles)
            if given > self._order:
                raise ValueError(
                    f"`multipoles` have the order {given} but the operator was made for {self._order}: pass "
                    f"order={given} to Coulomb.operator"
                )
            if self._ranks is not None:
                same.update(graph_of(**vars(multipoles)))
        value, gradient, second = self.potential(multipoles)
        return Potentials(
            potential=value,
            field=None if gradient is None else -gradient,
            field_gradient=None if second is None else -second,
        )

    def potential(self, multipoles: Multipoles) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Apply A: potential (atoms,), its gradient (atoms, 3) and traceless second derivatives (atoms, 3, 3)."""
        return self._joined(multipoles, [part.potential(_padded(part.padding, multipoles)) for part in self._sums])

    def energy_and_potential(
        self, multipoles: Multipoles
    ) -> tuple[Float[Tensor, " systems"], tuple[Tensor, Tensor | None, Tensor | None]]:
        """Give what `energy` and `potential` do, from one sum over the atoms.

        The energy needs no derivatives of the potential at the atoms, so that ``levels`` may be less than its order.
        """
        made = [part.energy_and_potential(_padded(part.padding, multipoles)) for part in self._sums]
        energies = ((part.padding, energy) for part, (energy, _) in zip(self._sums, made, strict=True))
        joined = join_systems(self._plan, energies, multipoles.charges.device)
        return joined, self._joined(multipoles, [potential for _, potential in made])

    def _joined(
        self, multipoles: Multipoles, parts: Sequence[tuple[Tensor, Tensor | None, Tensor | None]]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        q = multipoles.charges

        def collect(index: int, shape: tuple[int, ...]) -> Tensor | None:
            if not parts:
                return q.new_zeros(shape)
            blocks = []
            for part, outcome in zip(self._sums, parts, strict=True):
                block = outcome[index]
                if block is None:
                    return None
                blocks.append((part.padding, block))
            return join_atoms(self._plan, blocks)

        value = collect(0, (0,))
        return q if value is None else value, collect(1, (0, 3)), collect(2, (0, 3, 3))

    def one_shot(self, multipoles: Multipoles, response: Response, conserve_charge: bool) -> OneShot | None:
        """Energy of multipoles with what the atoms answer to them, found together; None where some sum cannot.

        In fewer passes than from `potential`: see `farfield.electrostatics.open_energy`.
        """
        sums = [part for part in self._sums if isinstance(part, OpenSum) and part.finds_answers]
        if not sums or len(sums) < len(self._sums):
            return None
        given = (response.softness, response.polarizability)
        made = [
            part.one_shot(
                _padded(part.padding, multipoles),
                *(_gathered(part.padding, values) for values in given),
                conserve_charge=conserve_charge,
            )
            for part in sums
        ]

        def collect(blocks: Iterable[Tensor | None]) -> Tensor | None:
            found = [(part.padding, block) for part, block in zip(sums, blocks, strict=True) if block is not None]
            return join_atoms(self._plan, found) if found else None

        directed = response.polarizability is not None or multipole_order(multipoles) > 0
        potential = collect(block.fields[..., 0] for block in made)
        assert potential is not None  # narrows the type
        return OneShot(
            energy=join_systems(
                self._plan,
                ((part.padding, block.energy) for part, block in zip(sums, made, strict=True)),
                multipoles.charges.device,
            ),
            potential=potential,
            gradient=collect(block.fields[..., 1:4] for block in made) if directed else None,
            charges=None if response.softness is None else collect(block.charges for block in made),
            dipoles=collect(block.dipoles for block in made),
        )

    def energy(self, multipoles: Multipoles) -> Float[Tensor, " systems"]:
        """½⟨m, A m⟩ of each system (eV), float64."""
        parts = ((part.padding, part.energy(_padded(part.padding, multipoles))) for part in self._sums)
        return join_systems(self._plan, parts, multipoles.charges.device)


def join_atoms(plan: CoulombPlan, blocks: Sequence[tuple[Padding, Tensor]]) -> Tensor:
    """Values of the atoms of a batch (atoms, …), from padded blocks of all of its groups."""
    released = [padding.release(block) for padding, block in blocks]
    if len(released) == 1:
        joined = released[0]
    elif plan.n_ranks > 1 and released[0].ndim == 1:
        # A rank may hold no atom of a group, and torch.cat keeps no second derivatives of tensors of the shape (0,).
        joined = torch.cat([part[:, None] for part in released]).squeeze(1)
    else:
        joined = torch.cat(released)
    return joined if plan.order is None else joined.index_select(0, plan.order)


def join_systems(plan: CoulombPlan, parts: Iterable[tuple[Padding, Tensor]], device: torch.device) -> Tensor:
    """Energies of the systems of a batch (systems,), from those of the members of its groups; zero if empty."""
    energy = torch.zeros(plan.n_systems, dtype=torch.float64, device=device)
    for padding, values in parts:
        if padding.whole_batch:
            return values
        energy = energy.index_copy(0, padding.systems, values)
    return energy
