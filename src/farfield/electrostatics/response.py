r"""Charges and dipoles that follow potential and field: one energy functional, in one shot or self-consistently.

With φ and E of the permanent multipoles q, u, Q and an external field F, all of it in latent units (PHYSICS: F and the
multipoles carry √ε and its inverse),

    E_total = E(q, u, Q) + U_κ + U_α − F·P_perm ,   P_perm = Σ q̃ r + Σ u ,   q̃ = q − (Σq − Q_tot)/N
    one shot:  Δq = −κ (φ − μ) ,  U_κ = −½ Σ κ (φ − μ)² ,     Δu = α·(E + F) ,  U_α = −½ Σ (E + F)·α·(E + F)
    scf:       min over Δq, Δu of  E(q+Δq, u+Δu, Q) + ½ Σ Δq²/κ + ½ Σ Δu·α⁻¹·Δu − F·P .

One shot is the first iterate of the self-consistent equations, without the interaction among what is induced. Along
open directions (all of a cluster, two of a wire, the normal of a slab) the field also acts on the induced charges,
φ → φ − F·r (`field_on_charges`). Along periodic directions F·Σq̃r is no energy and is left out (forces of charges in a
field are F·Z*, see `farfield.observables`).

The functional is written with potentials x that induced multipoles m = K x belong to, W(x) = ⟨g, K x⟩ + ½⟨x, K x⟩ +
½⟨K x, A K x⟩: no inverse and no root of κ or α, which may vanish. It is stationary in x.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.atoms.frames import open_arms
from farfield.electrostatics.checks import check_multipole_shapes, check_multipole_values
from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.multipoles import Multipoles
from farfield.electrostatics.operator import CoulombOperator, multipole_order
from farfield.electrostatics.plan import CoulombPlan
from farfield.electrostatics.response_checks import check_per_system, check_response_shapes, check_response_values
from farfield.electrostatics.response_drive import Setting, drive_of, field_energy, shares_of, unit_drives
from farfield.electrostatics.response_result import Parts, ResponseResult, parts_of
from farfield.electrostatics.self_consistent import DEFAULT_TOLERANCES, InducedSystem, Solution
from farfield.electrostatics.susceptibility import Response, Susceptibility

MODES = ("one-shot", "scf")


class LinearResponse:
    """Induced charges and dipoles of a batch, and the one energy that all follows from.

    Parameters
    ----------
    coulomb
        The sum.
    mode
        ``"one-shot"``, or ``"scf"``: induced multipoles feel each other.
    conserve_charge
        Whether the induced charges of each system add up to zero. Without it Δq = −κφ, the published form.
    field_on_charges
        Whether an external field acts on induced charges, along the open directions of each system; needs
        ``conserve_charge``, without which the energy would depend on the origin. None: where charge is conserved.
    tolerance
        Residual of the self-consistent equations relative to their right-hand side, in the norm √⟨r, K r⟩. The energy's
        error is its square. None: 1e-8, or 1e-5 in float32.
    max_iterations
        Most steps of conjugate gradients before an error.

    Raises
    ------
    ValueError
        For an unknown mode, a tolerance or number of steps that is not positive, ``field_on_charges`` without
        ``conserve_charge``.
    """

    def __init__(
        self,
        coulomb: Coulomb,
        *,
        mode: str = "one-shot",
        conserve_charge: bool = True,
        field_on_charges: bool | None = None,
        tolerance: float | None = None,
        max_iterations: int = 200,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"`mode` is {mode!r} but must be one of {', '.join(map(repr, MODES))}")
        if field_on_charges and not conserve_charge:
            raise ValueError(
                "`field_on_charges` is True but `conserve_charge` is False: without conserved charge the energy in a "
                "field would depend on the origin. Set conserve_charge=True or field_on_charges=False"
            )
        if tolerance is not None and not 0.0 < tolerance < 1.0:
            raise ValueError(f"`tolerance` is {tolerance} but must lie between 0 and 1 (relative residual)")
        if max_iterations < 1:
            raise ValueError(f"`max_iterations` is {max_iterations} but must be at least 1")
        self.coulomb = coulomb
        self.mode = mode
        self.conserve_charge = bool(conserve_charge)
        self.field_on_charges = self.conserve_charge if field_on_charges is None else bool(field_on_charges)
        self.tolerance = tolerance
        self.max_iterations = int(max_iterations)

    def config(self) -> dict[str, Any]:
        """Arguments that build the same response, as plain values."""
        return {
            "coulomb": self.coulomb.config(),
            "mode": self.mode,
            "conserve_charge": self.conserve_charge,
            "field_on_charges": self.field_on_charges,
            "tolerance": self.tolerance,
            "max_iterations": self.max_iterations,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the response from what `config` gives."""
        config = dict(config)
        return cls(Coulomb.from_config(config.pop("coulomb")), **config)

    def __call__(
        self,
        batch: AtomicBatch,
        multipoles: Multipoles,
        response: Response,
        plan: CoulombPlan | None = None,
        *,
        external_field: Float[Tensor, "systems 3"] | None = None,
        total_charge: Float[Tensor, " systems"] | None = None,
    ) -> ResponseResult:
        """Find the energy and what is induced.

        Parameters
        ----------
        batch
            The batch; its own ``external_field`` and ``total_charge`` are physical and not looked at.
        multipoles
            Permanent multipoles of its atoms.
        response
            Softness and polarizability of its atoms.
        plan
            As in `Coulomb`: with a plan only shapes are checked.
        external_field
            Latent field F (V/Å), shape (systems, 3): applied along open directions, macroscopic along periodic ones.
        total_charge
            Latent total charge of each system (e), for q̃ in the energy of the permanent charges in the field; 0 if not
            given.

        Returns
        -------
        ResponseResult
            Everything in it is differentiable in positions, cell, multipoles, κ, α and field; the energy three times,
            induced multipoles twice.

        Raises
        ------
        ValueError
            As `Coulomb`; for κ or α that do not fit the atoms and, without a plan, are not finite, κ < 0, or α is not
            symmetric positive semidefinite; for a field or charge of another shape.
        ResponseError
            If the self-consistent equations have no minimum, or are not solved; names the system.
        """
        frozen = plan is not None
        check_multipole_shapes(multipoles, batch.positions)
        check_response_shapes(response, batch.positions)
        check_per_system("external_field", external_field, (batch.n_systems, 3))
        check_per_system("total_charge", total_charge, (batch.n_systems,))
        if not frozen:
            check_multipole_values(multipoles)
            check_response_values(response)
        in_field = batch.positions.new_zeros(batch.n_systems, dtype=torch.float64)
        if external_field is not None:
            in_field = field_energy(batch, multipoles, external_field, total_charge)
        order = multipole_order(multipoles)
        if plan is None:
            charged = self.coulomb.charges_lead(batch, multipoles)
            plan = self.coulomb.plan_of(batch, _highest(order, response), charged)
        operator = self._operator(batch, order, response, plan)
        if self.mode == "one-shot" and external_field is None:
            found = operator.one_shot(multipoles, response, self.conserve_charge)
            if found is not None:
                return ResponseResult(
                    energy=found.energy,
                    field_energy=in_field,
                    iterations=0,
                    residual=torch.zeros_like(in_field),
                    _find_parts=lambda: self._solve(batch, multipoles, response, operator, None)[1],
                    _find_bare_parts=functools.partial(parts_of, batch, found),
                )
        permanent, parts, system, residual = self._solve(batch, multipoles, response, operator, external_field)
        return ResponseResult(
            energy=permanent + parts.response_energy + in_field,
            field_energy=in_field,
            iterations=0 if system is None else system.iterations,
            residual=torch.zeros_like(in_field) if residual is None else residual,
            _find_parts=lambda: parts,
        )

    def _solve(
        self,
        batch: AtomicBatch,
        multipoles: Multipoles,
        response: Response,
        operator: CoulombOperator,
        external_field: Tensor | None,
    ) -> tuple[Tensor, Parts, InducedSystem | None, Tensor | None]:
        """Energy of the permanent multipoles, all else but what a field does to them, and how it was found."""
        setting = self._setting(batch, response, operator, external_field is not None)
        permanent, (potential, gradient, _) = operator.energy_and_potential(multipoles)
        drive = drive_of(setting, potential, gradient, external_field)
        energy, induced, system, residual = self._respond(setting, drive)
        directed = multipole_order(multipoles) > 0 or response.polarizability is not None
        parts = Parts(
            response_energy=energy,
            potential=potential,
            field=-gradient if directed and gradient is not None else None,
            find_induced=lambda: setting.susceptibility.multipoles(induced()),
            find_shares=lambda moments: shares_of(setting, drive, moments),
        )
        return permanent, parts, system, residual

    def polarizability(
        self, batch: AtomicBatch, response: Response, plan: CoulombPlan | None = None, *, order: int = 0
    ) -> Float[Tensor, "atoms 3 3"]:
        """Find what a uniform field makes of each atom's moment, ∂(Δu + Δq (r − r̄))/∂F (e²·Å²/eV).

        r̄ is the geometric centre of the system, and of r − r̄ only what lies along open directions counts. The sum over
        the atoms of a system is its polarizability ∂P/∂F = −∂²E/∂F∂F, symmetric; what single atoms have need not be.

        Parameters
        ----------
        batch, response, plan
            As in the call.
        order
            Order of the permanent multipoles of the model: its reciprocal sums end where theirs do.

        Returns
        -------
        Tensor
            Shape (atoms, 3, 3), latent, second index the field; differentiable twice.
        """
        setting = self._setting_in_field(batch, response, plan, order)
        columns = []
        for drive in unit_drives(setting):
            charges, dipoles = setting.susceptibility.split(self._respond(setting, drive)[1]())
            moment = batch.positions.new_zeros(batch.n_atoms, 3) if dipoles is None else dipoles
            if charges is not None and setting.arms is not None:
                moment = moment + charges[:, None] * setting.arms
            columns.append(moment)
        return torch.stack(columns, dim=2)

    def total_polarizability(
        self, batch: AtomicBatch, response: Response, plan: CoulombPlan | None = None, *, order: int = 0
    ) -> Float[Tensor, "systems 3 3"]:
        r"""Find the polarizability of each system, ∂P/∂F = −∂²W/∂F∂F (e²·Å²/eV): the sum of `polarizability`.

        With x_a the answer to a unit field along a, and g_a what that field induces by (the module's W),

            α_ab = −⟨g_a, K x_b⟩ − ⟨K x_a, g_b + x_b + A K x_b⟩ ,

        which is stationary in all x: what the tolerance leaves enters as its square, and first derivatives need no
        further solution, unlike those of single atoms.

        Parameters
        ----------
        batch, response, plan, order
            As in `polarizability`.

        Returns
        -------
        Tensor
            Shape (systems, 3, 3), latent, symmetric, float64; differentiable three times.
        """
        setting = self._setting_in_field(batch, response, plan, order)
        K = setting.susceptibility
        drives = unit_drives(setting)
        induced, left = [], []
        for drive in drives:
            if self.mode == "one-shot":
                induced.append(-K(drive))
                continue
            found = self._self_consistent(setting, drive)
            x = found.stepped(1, negligible=2)
            induced.append(K(x))
            left.append(drive + x + found.system.apply(induced[-1]))
        rows = []
        for a, drive in enumerate(drives):
            answers = [K.product(drive, moments) for moments in induced]
            if left:
                answers = [answer + K.product(induced[a], rest) for answer, rest in zip(answers, left, strict=True)]
            rows.append(torch.stack(answers, dim=1))
        total = -torch.stack(rows, dim=1)
        return 0.5 * (total + total.mT)

    def _setting_in_field(
        self, batch: AtomicBatch, response: Response, plan: CoulombPlan | None, order: int
    ) -> Setting:
        """Check a response and set up what answers fields alone."""
        check_response_shapes(response, batch.positions)
        if plan is None:
            check_response_values(response)
        return self._setting(batch, response, self._operator(batch, order, response, plan), True)

    def _operator(
        self, batch: AtomicBatch, order: int, response: Response, plan: CoulombPlan | None
    ) -> CoulombOperator:
        if self.coulomb.process_group is not None:
            raise ValueError(
                "`coulomb` has a `process_group`, but response needs all atoms of a system on one process: give a "
                "Coulomb without one"
            )
        highest = _highest(order, response)
        return self.coulomb.operator(batch, plan, order=highest, levels=min(highest, 1) + 1)

    def _setting(self, batch: AtomicBatch, response: Response, operator: CoulombOperator, in_field: bool) -> Setting:
        susceptibility = Susceptibility(batch, response, self.conserve_charge)
        acts = in_field and self.field_on_charges and susceptibility.has_charges
        return Setting(batch, operator, susceptibility, open_arms(batch) if acts else None)

    def _respond(
        self, setting: Setting, drive: Tensor
    ) -> tuple[Tensor, Callable[[], Tensor], InducedSystem | None, Tensor | None]:
        """Response energy, a function that gives columns of induced multipoles, and how the equations were solved."""
        K = setting.susceptibility
        if self.mode == "one-shot":
            first = -K(drive)
            return 0.5 * K.product(drive, first), lambda: first, None, None

        found = self._self_consistent(setting, drive)
        x = found.stepped(1, negligible=2)
        m = K(x)
        energy = K.product(drive + 0.5 * x + 0.5 * found.system.apply(m), m)
        return energy, lambda: K(found.stepped(2, negligible=1)), found.system, found.residual

    def _self_consistent(self, setting: Setting, drive: Tensor) -> Solution:
        """Solve for the potentials that induce."""
        K = setting.susceptibility

        def apply(m: Tensor) -> Tensor:
            potential, gradient, _ = setting.operator.potential(K.multipoles(m))
            return K.join(potential, gradient)

        tolerance = self.tolerance or DEFAULT_TOLERANCES[drive.dtype]
        system = InducedSystem(apply, K, tolerance, self.max_iterations)
        x, residual = system.solve(-drive)
        return Solution(system, drive, x, residual, torch.is_grad_enabled())


def _highest(order: int, response: Response) -> int:
    """Highest multipoles to plan for; gradients of the field of charges need the waves that induced dipoles need."""
    return max(order, int(response.polarizability is not None))
