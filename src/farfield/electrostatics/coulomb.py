"""The Coulomb solver: energy, potential, field and field gradient of Gaussian multipoles in batches of any systems."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.electrostatics.checks import (
    check_batch_shapes,
    check_multipole_shapes,
    check_multipole_values,
    check_order,
)
from farfield.electrostatics.cost import DENSE, LEADING
from farfield.electrostatics.distributed import graph_of, sum_over_ranks, together
from farfield.electrostatics.group_sums import pair_energies
from farfield.electrostatics.multipoles import Multipoles
from farfield.electrostatics.operator import CoulombOperator, multipole_order
from farfield.electrostatics.plan import CoulombPlan
from farfield.electrostatics.solver import Solver
from farfield.electrostatics.spreading import LEAST_COMPILED

_BACKGROUNDS = ("gaussian", "point")
_OUTPUTS = ("all", "energy")


@dataclass(frozen=True, eq=False)
class CoulombResult:
    """What `Coulomb` gives; everything is differentiable twice in positions, cell and multipoles.

    Attributes
    ----------
    energy
        Energy of each system (eV), shape (systems,), float64.
    potential
        ∂E/∂q: potential of the other atoms at each atom (V), shape (atoms,). None with ``outputs="energy"``.
    field
        −∂E/∂u: electric field of the other atoms (V/Å), shape (atoms, 3). None with ``outputs="energy"``.
    field_gradient
        −2 ∂E/∂Q = −∇∇φ without its trace (V/Å²), shape (atoms, 3, 3). None with ``outputs="energy"``.
    """

    energy: Float[Tensor, " systems"]
    potential: Float[Tensor, " atoms"] | None = None
    field: Float[Tensor, "atoms 3"] | None = None
    field_gradient: Float[Tensor, "atoms 3 3"] | None = None
    _find_atom_energies: Callable[[], Tensor] = dataclasses.field(kw_only=True, repr=False)

    @functools.cached_property
    def atom_energies(self) -> Float[Tensor, " atoms"]:
        """Share of each atom (eV), shape (atoms,); they sum to the energy. Found when first asked for.

        In a process group all ranks have to ask for it, and all their atoms' shares sum to the energy.
        """
        return self._find_atom_energies()


class Coulomb(Solver):
    r"""Sum the Coulomb interaction of Gaussian charges, dipoles and quadrupoles.

    Atom i carries a charge q, dipole u and traceless quadrupole Q, smeared so that two unit charges interact by
    k_e erf(a r)/r with a = 1/(√2 σ). Systems that are periodic along all axes are summed by Ewald (with Gaussians there
    is only the reciprocal part), systems that are periodic along none directly; a batch may mix them:

        E = (2π k_e/V) Σ_{k≠0} exp(−σ²k²/2)/k² |S(k)|² − E_self ,   S(k) = Σ_i (q_i + i k·u_i − ½ k·Q_i·k) exp(i k·r_i)
        , E = ½ Σ_{i≠j} L_i L_j k_e erf(a r_ij)/r_ij ,   L_i = q_i + u_i·∇_i + ½ Q_i:∇_i∇_i .

    Slabs and wires (``pbc`` along two or one of any of the axes) are summed like periodic systems, with the transform
    of a Coulomb interaction that ends before the images along the open directions (`farfield.electrostatics.boundary`):
    vacuum in the given cell does not matter. Charged slabs and wires have the energies of the planar and line
    interactions −2π k_e|z| and −2 k_e ln(ρ/1 Å).

    All results can be differentiated twice in positions, cell and multipoles; forces and stress are the derivatives of
    the energy. The reciprocal sum ends smoothly, so they are continuous functions of the cell.

    Parameters
    ----------
    smearing
        Width σ of the Gaussians (Å): a number, or one per system, shape (systems,). No gradient in it.
    accuracy
        Relative RMS error of the forces that the reciprocal sum may have; the cutoff in k or the mesh and its splines
        follow from it, from σ and from the highest multipoles given; the mesh also from whether charges lead among
        them (see `prepare`). Open systems are summed exactly.
    background
        What neutralizes a charged cell that is periodic along all axes: ``"gaussian"`` leaves out k = 0, a uniform
        background as the Gaussians see it; ``"point"`` adds −π k_e σ² Q²/V, which makes the energy comparable with
        Ewald codes for point charges.
    self_interaction
        Keep the interaction of each Gaussian with itself, k_e/√(2π) [q²/σ + u²/(3σ³) + Q:Q/(10σ⁵)].
    method
        ``"auto"`` takes for each system what reaches the accuracy soonest: a direct sum (open systems), Ewald's, or a
        particle mesh, by size and boundary (`farfield.electrostatics.cost`). ``"ewald"`` and ``"mesh"`` sum open
        systems in reciprocal space, too; ``"open"`` refuses batches with any periodic system.
    process_group
        A torch.distributed process group whose ranks hold the atoms together; see below. None if all atoms are here.
        No part of `config`, nor of files; copies keep it.

    Raises
    ------
    ValueError
        For a smearing that is not positive, an accuracy outside 1e-12 … 0.1, an unknown option.
    TypeError
        For another object than a process group.

    Notes
    -----
    With a ``process_group`` every rank gives a batch of its own atoms: of each system some, possibly none, on each rank
    (number and order of the systems, ``cell`` and ``pbc`` are the same on all). All ranks make the same calls, forward
    and backward. What they get, and what gradients mean:

    * ``energy`` is that of the whole systems, equal on all ranks; potential, field, field gradient and atoms' energies
      are those at a rank's own atoms.
    * Each rank calls backward on the energy, or a function of it, once. The gradients at its atoms, in positions and
      multipoles, are those of one process.
    * Of losses that differ from rank to rank, such as those of forces or potentials of a rank's own atoms, each rank
      calls backward on its own: the gradients are those of their sum over ranks. Terms made of energies count once.
    * What all ranks have copies of, parameters that multipoles were made with and the cell, gets a share of its
      gradient on each: sum them over the ranks. So does the stress, whose virial has a sum over atoms, too: work it out
      on each rank as on one process and sum the outcomes.
    * What one rank refuses raises on all. For that the ranks exchange a few numbers in every call, which synchronizes
      the device.

    Structure factors and meshes are summed over the ranks, and what follows for them alone (transforms, weights) is
    done on each rank. Pairs of open systems are summed on each rank, over the atoms of all.

    Examples
    --------
    >>> coulomb = Coulomb(smearing=1.0, accuracy=1e-4)
    >>> result = coulomb(batch, Multipoles(charges, dipoles))  # doctest: +SKIP
    >>> forces = -torch.autograd.grad(result.energy.sum(), batch.positions)[0]  # doctest: +SKIP
    """

    def __init__(
        self,
        smearing: float | Float[Tensor, " systems"] = 1.0,
        *,
        accuracy: float = 1e-4,
        background: str = "gaussian",
        self_interaction: bool = False,
        method: str = "auto",
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(smearing, accuracy=accuracy, method=method, process_group=process_group)
        if background not in _BACKGROUNDS:
            raise ValueError(f"`background` is {background!r} but must be one of {', '.join(map(repr, _BACKGROUNDS))}")
        self.background = background
        self.self_interaction = bool(self_interaction)

    def config(self) -> dict[str, Any]:
        """Arguments that build the same solver, as plain values."""
        return {**super().config(), "background": self.background, "self_interaction": self.self_interaction}

    def __call__(
        self,
        batch: AtomicBatch,
        multipoles: Multipoles,
        plan: CoulombPlan | None = None,
        outputs: str = "all",
    ) -> CoulombResult:
        """Sum the interactions of a batch.

        Parameters
        ----------
        batch
            The batch.
        multipoles
            Charges and, if given, dipoles and quadrupoles of its atoms, of the dtype of the positions.
        plan
            What `prepare` gave. None prepares the batch now, or takes the plan of the last batch if its systems and
            cells are the same (as in dynamics in a fixed cell), and checks all values; with a plan only shapes are
            checked, and the device is not synchronized.
        outputs
            ``"all"``, or ``"energy"`` for the energy alone, which is cheaper.

        Returns
        -------
        CoulombResult
            Energy, potential, field and field gradient.

        Raises
        ------
        ValueError
            For wrong shapes, a plan of another batch and, without a plan, values that make no sense: what `prepare`
            refuses, multipoles that are not finite, quadrupoles that are not symmetric and traceless.
        TypeError
            For wrong dtypes.
        """
        frozen = plan is not None
        order = multipole_order(multipoles)
        charged = True if frozen else self.charges_lead(batch, multipoles)
        plan = self._checked_plan(batch, plan, order, charged)
        with together(self.process_group) as same:
            if outputs not in _OUTPUTS:
                raise ValueError(f"`outputs` is {outputs!r} but must be one of {', '.join(map(repr, _OUTPUTS))}")
            check_multipole_shapes(multipoles, batch.positions)
            if not frozen:
                check_multipole_values(multipoles)
            if self.process_group is not None:
                same["the place of `outputs` among its options"] = _OUTPUTS.index(outputs)
                same.update(graph_of(positions=batch.positions, cell=batch.cell, **vars(multipoles)))
        if outputs == "energy":
            operator = self._operator(batch, plan, order, order + 1)
            return CoulombResult(
                energy=operator.energy(multipoles),
                _find_atom_energies=lambda: pair_energies(multipoles, *operator.potential(multipoles)),
            )
        potential, gradient, second = self._operator(batch, plan, order, 3).potential(multipoles)
        atom_energies = pair_energies(multipoles, potential, gradient, second)
        return CoulombResult(
            energy=sum_over_ranks(batch.sum_over_atoms(atom_energies), self.process_group),
            potential=potential,
            field=None if gradient is None else -gradient,
            field_gradient=None if second is None else -second,
            _find_atom_energies=lambda: atom_energies,
        )

    def charges_lead(self, batch: AtomicBatch, multipoles: Multipoles) -> bool | Tensor:
        """Whether charges lead in each system, as `prepare` wants it, shape (systems,); True where nothing asks.

        Raises
        ------
        ValueError
            For a batch or multipoles of wrong shapes.
        """
        never_meshed = self.method == "auto" and batch.n_atoms < LEAST_COMPILED and self.process_group is None
        if self.method in ("ewald", "open") or never_meshed or multipole_order(multipoles) == 0:
            return True
        with together(self.process_group):
            check_batch_shapes(batch)
            check_multipole_shapes(multipoles, batch.positions)
        q, u, t = multipoles.charges, multipoles.dipoles, multipoles.quadrupoles
        none = torch.zeros_like(q)
        parts = [
            torch.ones_like(q),
            q.square(),
            none if u is None else u.square().sum(1) / LEADING[0] ** 2,
            none if t is None else t.square().sum((1, 2)) / LEADING[1] ** 2,
        ]
        sums = sum_over_ranks(batch.sum_over_atoms(torch.stack(parts, 1).detach()), self.process_group)
        volume = torch.linalg.det(batch.cell.detach().double()).abs()
        crowding = torch.where(batch.pbc.all(1), (sums[:, 0] / (DENSE * volume)).clamp(max=1.0), 1.0)
        return (sums[:, 2:] <= (crowding * sums[:, 1])[:, None]).all(1)

    def operator(
        self, batch: AtomicBatch, plan: CoulombPlan | None = None, *, order: int = 2, levels: int = 3
    ) -> CoulombOperator:
        """Build the linear operator A of a batch, to apply it to several sets of multipoles: E = ½⟨m, A m⟩.

        Parameters
        ----------
        batch
            The batch.
        plan
            Its plan; None prepares one.
        order
            Highest multipoles it will be applied to: 0 charges, 1 dipoles, 2 quadrupoles. The reciprocal sum ends where
            ``accuracy`` is reached for that order.
        levels
            What it will give: 1 the potential, 2 the field too, 3 the field gradient too.

        Returns
        -------
        CoulombOperator
            ``operator(multipoles)`` gives ``potential``, ``field`` and ``field_gradient``.

        Raises
        ------
        ValueError
            For another order or level, and as `prepare`.
        """
        with together(self.process_group) as same:
            check_order(order)
            if levels not in (1, 2, 3):
                raise ValueError(f"`levels` is {levels!r} but must be 1 (potential), 2 (field) or 3 (field gradient)")
            same["`order`"], same["`levels`"] = order, levels
        return self._operator(batch, self._checked_plan(batch, plan, order), order, levels)

    def _operator(self, batch: AtomicBatch, plan: CoulombPlan, order: int, levels: int) -> CoulombOperator:
        return CoulombOperator(
            batch,
            plan,
            order=order,
            levels=levels,
            background=self.background,
            self_interaction=self.self_interaction,
            ranks=self.process_group,
        )
