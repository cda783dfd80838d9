"""The Coulomb solver: energy, potential, field and field gradient of Gaussian multipoles in batches of any systems."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.electrostatics.checks import (
    check_batch_shapes,
    check_batch_values,
    check_multipole_shapes,
    check_multipole_values,
    check_positions,
)
from farfield.electrostatics.multipoles import Multipoles
from farfield.electrostatics.operator import CoulombOperator, multipole_order, pair_energies
from farfield.electrostatics.plan import CoulombPlan, make_plan

_BACKGROUNDS = ("gaussian", "point")
_METHODS = ("auto", "open", "ewald", "mesh")
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
        """Share of each atom (eV), shape (atoms,); they sum to the energy. Found when first asked for."""
        return self._find_atom_energies()


@dataclass(frozen=True, eq=False)
class _KeptPlan:
    """A plan, and all of the solver and the batch that it depends on."""

    plan: CoulombPlan
    settings: tuple[list[float] | float, float, str]
    cell: Tensor
    pbc: Tensor
    system: Tensor
    dtype: torch.dtype

    def fits(self, batch: AtomicBatch) -> bool:
        """Whether a batch would get the same plan: the same systems in the same cells, slabs and wires not outgrown."""
        given = (batch.cell, batch.pbc, batch.system)
        return (
            batch.positions.dtype == self.dtype
            and all(
                mine.device == theirs.device and torch.equal(mine, theirs)
                for mine, theirs in zip((self.cell, self.pbc, self.system), given, strict=True)
            )
            and self.plan.has_room(batch)
        )


class Coulomb:
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
        follow from it, from σ and from the highest multipoles given. Open systems are summed exactly.
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

    Raises
    ------
    ValueError
        For a smearing that is not positive, an accuracy outside 1e-12 … 0.1, an unknown option.

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
    ) -> None:
        if isinstance(smearing, Tensor):
            smearing = smearing.detach().to("cpu", torch.float64)
            wrong = ~(torch.isfinite(smearing) & (smearing > 0))
            if smearing.ndim != 1 or bool(wrong.any()):
                raise ValueError(
                    f"`smearing` is {smearing.tolist()} but must be positive, one number or one per system (Å)"
                )
        elif not (math.isfinite(smearing) and smearing > 0):
            raise ValueError(f"`smearing` is {smearing} but must be positive (Å)")
        if not 1e-12 <= accuracy <= 0.1:
            raise ValueError(f"`accuracy` is {accuracy} but must lie between 1e-12 and 0.1 (relative RMS force error)")
        for name, value, allowed in (("background", background, _BACKGROUNDS), ("method", method, _METHODS)):
            if value not in allowed:
                raise ValueError(f"`{name}` is {value!r} but must be one of {', '.join(map(repr, allowed))}")
        self.smearing = smearing
        self.accuracy = float(accuracy)
        self.background = background
        self.self_interaction = bool(self_interaction)
        self.method = method
        self._kept: _KeptPlan | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the plan of the last batch out of copies and files."""
        return {**self.__dict__, "_kept": None}

    def config(self) -> dict[str, Any]:
        """Arguments that build the same solver, as plain values."""
        smearing = self.smearing.tolist() if isinstance(self.smearing, Tensor) else float(self.smearing)
        return {
            "smearing": smearing,
            "accuracy": self.accuracy,
            "background": self.background,
            "self_interaction": self.self_interaction,
            "method": self.method,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Coulomb:
        """Build a solver from what `config` gives."""
        config = dict(config)
        smearing = config.pop("smearing", 1.0)
        if isinstance(smearing, list):
            smearing = torch.tensor(smearing, dtype=torch.float64)
        return cls(smearing, **config)

    def __repr__(self) -> str:
        return f"Coulomb({', '.join(f'{name}={value!r}' for name, value in self.config().items())})"

    def prepare(self, batch: AtomicBatch) -> CoulombPlan:
        """Check a batch and settle how it will be summed.

        The plan depends on which atoms belong to which system, on the cells and on ``pbc``, and for slabs and wires on
        how far they extend along open directions, with room for a tenth more; otherwise not on the positions. It can be
        kept while atoms move in fixed cells. When a cell changes, prepare again: an old plan lacks the
        reciprocal vectors that have come inside the cutoff since, and the energy is then no longer continuous to all
        digits. Takes no part in gradients; synchronizes the device.

        Parameters
        ----------
        batch
            The batch; ``numbers`` and ``neighbors`` are not looked at.

        Returns
        -------
        CoulombPlan
            The plan, on the device of the batch.

        Raises
        ------
        ValueError
            For wrong shapes, positions or periodic cells that are not finite, a zero or degenerate cell vector on a
            periodic axis, a batch that does not fit ``smearing`` or ``method``.
        TypeError
            For wrong dtypes.
        """
        check_batch_shapes(batch)
        check_batch_values(batch)
        periodic = batch.pbc.any(dim=1)
        if self.method == "open" and bool(periodic.any()):
            raise ValueError(
                f"`method` is 'open' but system {int(periodic.nonzero()[0])} is periodic: use method='auto' or change "
                "`pbc`"
            )
        if isinstance(self.smearing, Tensor):
            if len(self.smearing) != batch.n_systems:
                raise ValueError(
                    f"`smearing` has {len(self.smearing)} values but the batch has {batch.n_systems} systems: give one "
                    "each"
                )
            smearing = self.smearing.numpy()
        else:
            smearing = np.full(batch.n_systems, float(self.smearing))
        return make_plan(batch, smearing, self.accuracy, self.method)

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
        if outputs not in _OUTPUTS:
            raise ValueError(f"`outputs` is {outputs!r} but must be one of {', '.join(map(repr, _OUTPUTS))}")
        frozen = plan is not None
        plan = self._checked_plan(batch, plan)
        check_multipole_shapes(multipoles, batch.positions)
        if not frozen:
            check_multipole_values(multipoles)
        order = multipole_order(multipoles)
        if outputs == "energy":
            operator = self._operator(batch, plan, order, order + 1)
            return CoulombResult(
                energy=operator.energy(multipoles),
                _find_atom_energies=lambda: pair_energies(multipoles, *operator.potential(multipoles)),
            )
        potential, gradient, second = self._operator(batch, plan, order, 3).potential(multipoles)
        atom_energies = pair_energies(multipoles, potential, gradient, second)
        return CoulombResult(
            energy=batch.sum_over_atoms(atom_energies),
            potential=potential,
            field=None if gradient is None else -gradient,
            field_gradient=None if second is None else -second,
            _find_atom_energies=lambda: atom_energies,
        )

    def operator(self, batch: AtomicBatch, plan: CoulombPlan | None = None, *, order: int = 2) -> CoulombOperator:
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

        Returns
        -------
        CoulombOperator
            ``operator(multipoles)`` gives ``potential``, ``field`` and ``field_gradient``.

        Raises
        ------
        ValueError
            For another order, and as `prepare`.
        """
        if order not in (0, 1, 2):
            raise ValueError(f"`order` is {order!r} but must be 0 (charges), 1 (dipoles) or 2 (quadrupoles)")
        return self._operator(batch, self._checked_plan(batch, plan), order, 3)

    def _checked_plan(self, batch: AtomicBatch, plan: CoulombPlan | None) -> CoulombPlan:
        if plan is None:
            return self._plan_of(batch)
        check_batch_shapes(batch)
        if (plan.n_atoms, plan.n_systems) != (batch.n_atoms, batch.n_systems):
            raise ValueError(
                f"`plan` was prepared for {plan.n_atoms} atoms in {plan.n_systems} systems but the batch has "
                f"{batch.n_atoms} in {batch.n_systems}: call prepare(batch) again"
            )
        return plan

    def _plan_of(self, batch: AtomicBatch) -> CoulombPlan:
        """Return the plan of the last batch where it fits this one, else a new one."""
        kept = self._kept
        settings = self._plan_settings()
        if kept is not None and kept.settings == settings:
            check_batch_shapes(batch)
            if kept.fits(batch):
                check_positions(batch)
                return kept.plan
        plan = self.prepare(batch)
        if not torch.is_inference_mode_enabled():  # what is made there cannot take part in a graph later
            cell = batch.cell.detach().clone()
            self._kept = _KeptPlan(plan, settings, cell, batch.pbc.clone(), batch.system.clone(), batch.positions.dtype)
        return plan

    def _plan_settings(self) -> tuple[list[float] | float, float, str]:
        """Return what a plan depends on besides the batch: attributes, which somebody may set."""
        smearing = self.smearing.tolist() if isinstance(self.smearing, Tensor) else self.smearing
        return smearing, self.accuracy, self.method

    def _operator(self, batch: AtomicBatch, plan: CoulombPlan, order: int, levels: int) -> CoulombOperator:
        return CoulombOperator(
            batch,
            plan,
            order=order,
            levels=levels,
            background=self.background,
            self_interaction=self.self_interaction,
        )
