r"""Induced multipoles that feel each other: conjugate gradients, and derivatives of the solution.

Induced multipoles m = K x belong to potentials x (`Susceptibility`) that obey

    (1 + A K) x = b ,   b minus the potentials of all that is given ,

A the Coulomb operator. In the inner product ⟨a, K b⟩ the matrix 1 + A K is symmetric, and conjugate gradients in it are
those in the variables κ^½, α^½, without their roots: singular K does no harm, and no root is ever differentiated.

Derivatives. With x₀ the solution as found, a constant, one step of Newton's method with the matrix frozen,

    x₁ = x₀ + B₀⁻¹ (b − (1 + A K) x₀) ,   B₀⁻¹ = (1 + A K)⁻¹ at the present positions, not differentiated,

has the value of x₀ and the first derivatives of the solution; each further step adds an order. B₀⁻¹ is a constant
linear map: its backward pass is its transpose, 1 − K B₀⁻¹ A, so every backward pass solves the system once more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from farfield.electrostatics.susceptibility import Susceptibility

#: Residual that is asked for by default.
DEFAULT_TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-5}

Apply = Callable[[Tensor], Tensor]


class ResponseError(RuntimeError):
    """Induced multipoles could not be found: they have no minimum of the energy, or not enough steps were made."""


class InducedSystem:
    """The linear system of induced multipoles of a batch.

    Parameters
    ----------
    apply
        A: from columns of multipoles to columns of the potential (and its gradient) that they make.
    susceptibility
        K.
    tolerance
        Residual, relative to the right-hand side, in the norm √⟨r, K r⟩ of each system.
    max_iterations
        Most steps before an error.
    """

    def __init__(self, apply: Apply, susceptibility: Susceptibility, tolerance: float, max_iterations: int) -> None:
        self.apply, self._susceptibility = apply, susceptibility
        self._tolerance, self._max_iterations = tolerance, max_iterations
        #: Steps of the last solution.
        self.iterations = 0

    def matrix(self, x: Float[Tensor, "atoms columns"]) -> Float[Tensor, "atoms columns"]:
        """(1 + A K) x, with its graph."""
        return x + self.apply(self._susceptibility(x))

    @torch.no_grad()
    def solve(self, b: Float[Tensor, "atoms columns"]) -> tuple[Tensor, Float[Tensor, " systems"]]:
        """Solve for x by conjugate gradients, all systems at once; those that have converged wait.

        Returns
        -------
        tuple of Tensor
            x, and what is left of the right-hand side of each system, relative to it.

        Raises
        ------
        ResponseError
            If a direction of negative curvature is met, or the tolerance is not reached; names the system.
        """
        K = self._susceptibility
        dot, system = K.product, K.system
        b = b.detach()
        # Constants that K does not see are taken out at once: a small rest would drown in their rounding.
        residual = direction = K.project(b)
        x = torch.zeros_like(b)
        squared = dot(residual, K.local(residual))
        start = torch.where(squared > 0, squared, 1.0)
        # Less than rounding of what was taken out is nothing to be solved for.
        active = driven = squared > (10.0 * torch.finfo(b.dtype).eps) ** 2 * dot(b, K.local(b))
        iterations = 0
        while bool(active.any()):
            if iterations == self._max_iterations:
                self._refuse_unconverged((squared / start).sqrt() * active)
            induced = K.local(direction)
            image = direction + K.project(self.apply(induced))
            curvature = dot(induced, image)
            flat = active & ~(curvature > 0)
            if bool(flat.any()):
                self._refuse_indefinite(flat, curvature / dot(induced, direction))
            step = torch.where(active, squared / torch.where(active, curvature, 1.0), 0.0).to(b.dtype)[system, None]
            x = x + step * direction
            residual = residual - step * image
            previous, squared = squared, dot(residual, K.local(residual))
            ratio = torch.where(active, squared / torch.where(active, previous, 1.0), 0.0).to(b.dtype)[system, None]
            active = active & (squared > self._tolerance**2 * start)
            direction = residual + ratio * direction
            iterations += 1
        self.iterations = iterations
        # In the kernel of α or κ, where conjugate gradients are blind, the residual is what x still lacks.
        return x + residual, torch.where(driven, (squared / start).clamp(min=0.0).sqrt(), 0.0)

    def frozen_inverse(self, v: Tensor, *, negligible: int) -> Tensor:
        """B₀⁻¹ v: a constant linear map, differentiable in v any number of times.

        Parameters
        ----------
        v
            Columns.
        negligible
            How many of the passes (this one, its backward pass, the backward pass of that …) are known to act on
            rounding errors and tolerances alone: these return what they are given instead of solving for it. 1 for the
            residual of a solution, 2 for one that enters a functional that is stationary in it, whose backward pass is
            skipped altogether if it is not to be differentiated itself.
        """
        result: Tensor = _FrozenInverse.apply(v, self, False, negligible)
        return result

    def _refuse_indefinite(self, flat: Tensor, curvature: Tensor) -> None:
        worst = int(flat.nonzero()[0])
        raise ResponseError(
            f"the induced multipoles of system {worst} have no minimum: the interaction of induced charges and dipoles "
            f"outweighs what it costs to induce them (curvature {float(curvature[worst]):.3g} along a direction, must "
            "be positive). Lower softness and polarizability, which is sure to help below κ = √(2π)σ/(2k_e) (.0870 "
            "e²/eV at σ = 1 Å) and α = 3√(2π)σ³/(2k_e) (3.76 Å³/k_e), or use a larger smearing, or response='one-shot'"
        )

    def _refuse_unconverged(self, residuals: Tensor) -> None:
        worst = int(residuals.argmax())
        raise ResponseError(
            f"the induced multipoles of system {worst} have not converged after {self._max_iterations} steps: residual "
            f"{float(residuals[worst]):.3g}, tolerance {self._tolerance:.3g}. Raise `max_iterations` or `tolerance`, "
            "or lower softness and polarizability"
        )

    def _solved(self, v: Tensor, transposed: bool) -> Tensor:
        """B₀⁻¹ v or its transpose, without a graph."""
        if transposed:
            return v - self._susceptibility(self.solve(self.apply(v))[0])
        return self.solve(v)[0]


@dataclass(frozen=True, eq=False)
class Solution:
    """Potentials that induce, as found, and what makes them functions of everything else."""

    system: InducedSystem
    drive: Tensor
    found: Tensor
    residual: Tensor
    with_graph: bool

    def stepped(self, steps: int, *, negligible: int) -> Tensor:
        """Give the solution with so many orders of its derivatives (`InducedSystem.frozen_inverse`)."""
        x, system = self.found, self.system
        for _ in range(steps if self.with_graph and torch.is_grad_enabled() else 0):
            x = x + system.frozen_inverse(-self.drive - system.matrix(x), negligible=negligible)
        return x


class _FrozenInverse(torch.autograd.Function):
    """See `InducedSystem.frozen_inverse`."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, v: Tensor, system: InducedSystem, transposed: bool, negligible: int
    ) -> Tensor:
        ctx.options = (system, transposed, negligible)  # type: ignore[attr-defined]
        return v.clone() if negligible > 0 else system._solved(v, transposed)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, w: Tensor) -> tuple[Tensor | None, None, None, None]:
        system, transposed, negligible = ctx.options  # type: ignore[attr-defined]
        if negligible > 1 and not torch.is_grad_enabled():
            return None, None, None, None
        result: Tensor = _FrozenInverse.apply(w, system, not transposed, max(negligible - 1, 0))
        return result, None, None, None
