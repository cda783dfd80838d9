"""What the response refuses, and why: checks of shapes (every call) and of values (once)."""

from __future__ import annotations

import torch
from torch import Tensor

from farfield.electrostatics.checks import check_finite, check_given
from farfield.electrostatics.susceptibility import Response


def check_response_shapes(response: Response, positions: Tensor) -> None:
    """Refuse κ and α that do not fit the atoms.

    Raises
    ------
    ValueError
        For a wrong shape or device, or neither κ nor α.
    TypeError
        For another dtype than that of the positions.
    """
    softness, alpha = response.softness, response.polarizability
    if softness is None and alpha is None:
        raise ValueError("`response` has neither `softness` nor `polarizability`: give one, or use `Coulomb` alone")
    if softness is not None:
        check_given("softness", softness, positions, (len(positions),))
    if alpha is not None:
        shape = (len(positions),) if alpha.ndim == 1 else (len(positions), 3, 3)
        check_given("polarizability", alpha, positions, shape)


def check_response_values(response: Response) -> None:
    """Refuse κ and α that are not finite, κ < 0, and α that is not symmetric positive semidefinite. Synchronizes.

    Raises
    ------
    ValueError
        Naming the atom and the value.
    """
    softness, alpha = response.softness, response.polarizability
    if softness is not None:
        check_finite("softness", softness)
        _refuse(softness.detach() < 0, softness, "softness", "must not be negative (e²/eV): make it by a softplus")
    if alpha is None or not len(alpha):
        return
    check_finite("polarizability", alpha)
    alpha = alpha.detach()
    if alpha.ndim == 1:
        _refuse(alpha < 0, alpha, "polarizability", "must not be negative (e²·Å²/eV): make it by a softplus")
        return
    size = alpha.abs().amax(dim=(1, 2))
    tolerance = 100 * torch.finfo(alpha.dtype).eps * torch.maximum(size, size.mean())
    skew = (alpha - alpha.mT).abs().amax(dim=(1, 2))
    _refuse(skew > tolerance, alpha, "polarizability", "must be symmetric: take ½(α + αᵀ)")
    lowest = torch.linalg.eigvalsh(alpha)[:, 0]
    _refuse(lowest < -tolerance, alpha, "polarizability", "must be positive semidefinite: make it as A·Aᵀ")


def _refuse(wrong: Tensor, values: Tensor, name: str, rule: str) -> None:
    if bool(wrong.any()):
        atom = int(wrong.nonzero()[0])
        raise ValueError(f"`{name}` of atom {atom} is {values[atom].tolist()} but {rule}")


def check_per_system(name: str, given: Tensor | None, shape: tuple[int, ...]) -> None:
    """Refuse a tensor with values of systems that has another shape.

    Raises
    ------
    ValueError
        Naming both shapes.
    """
    if given is not None and given.shape != shape:
        raise ValueError(f"`{name}` has the shape {tuple(given.shape)} but must be {shape}: a row for each system")
