r"""Direct sum of Gaussian multipoles under open boundary conditions.

    E = ½ Σ_{i≠j} L_i L_j k_e B_0(r_ij) ,   L_i = q_i + u_i·∇_i + ½ Q_i:∇_i∇_i ,

over all pairs of each system in padded blocks (members, i, j). With R = r_i − r_j every derivative of the kernel is a
product of components of R and one B_n, and the multipoles are contracted with R first: u·R, Q·R, R·Q·R. No tensor of
higher derivatives is ever made. Components stand in front (3, members, i, j), so that sums over them add whole blocks.

It is made of tensor operations: for accelerators, compiled graphs, few atoms and third derivatives. On CPUs the kernels
of `farfield.electrostatics.open_multipoles` do the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from farfield.electrostatics.kernels import gaussian_kernels
from farfield.units import COULOMB_CONSTANT

_PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


class OpenGeometry:
    """Positions of a group of open systems, ready to be applied to multipoles.

    Parameters
    ----------
    positions
        Shape (members, slots, 3) (Å); any finite value in empty slots, whose multipoles must be zero.
    smearing
        σ (Å), shape (members,).
    highest
        Highest order of the radial kernels that will be asked for.
    """

    def __init__(self, positions: Tensor, smearing: Tensor, highest: int) -> None:
        components = positions.permute(2, 0, 1)
        self.bond = components[..., :, None] - components[..., None, :]
        squared = (self.bond * self.bond).sum(0)
        exponent = (0.5**0.5 / smearing).to(positions.dtype)[:, None, None]
        kernels = gaussian_kernels(squared, exponent, highest)
        others = COULOMB_CONSTANT * (1.0 - torch.eye(squared.shape[-1], dtype=squared.dtype, device=squared.device))
        self.kernels = [kernel * others for kernel in kernels]

    def potential(
        self, charges: Tensor, dipoles: Tensor | None, quadrupoles: Tensor | None, levels: int
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Potential (members, slots) of the other atoms, its gradient and (but for the trace) second derivatives.

        ``levels`` is 1 for the potential alone, 2 with its gradient, 3 with its second derivatives.
        """
        bond, kernel = self.bond, self.kernels
        # Coefficients g_n of B_n in the potential of j at i: q B_0 + (u·R) B_1 + ½ (R·Q·R) B_2.
        sources: list[Tensor] = [charges[:, None, :]]
        if dipoles is not None or quadrupoles is not None:
            u = None if dipoles is None else dipoles.permute(2, 0, 1)[:, :, None, :]
            sources.append(torch.zeros_like(kernel[0]) if u is None else (u * bond).sum(0))
        if quadrupoles is not None:
            columns = quadrupoles.permute(2, 3, 0, 1)[:, :, :, None, :]
            product = (columns * bond).sum(1)
            sources.append(0.5 * (product * bond).sum(0))
        if dipoles is None:
            u = None

        def series(shift: int) -> Tensor:
            total = sources[0] * kernel[shift]
            for n, coefficient in enumerate(sources[1:], 1):
                total = torch.addcmul(total, coefficient, kernel[n + shift])
            return total

        value = series(0).sum(2)
        gradient = second = None
        if levels > 1:
            # ∇ of the above: −R (…)_{n+1} + u B_1 + (Q·R) B_2.
            terms = -series(1) * bond
            direct = None
            if u is not None:
                direct = u * kernel[1]
            if quadrupoles is not None:
                direct = product * kernel[2] if direct is None else torch.addcmul(direct, product, kernel[2])
            gradient = (terms if direct is None else terms + direct).sum(3).permute(1, 2, 0)
        if levels > 2:
            # ∇∇: R R (…)_{n+2} − sym R (u B_2 + Q·R B_3) + Q B_2, and −1·(…)_{n+1}, which is all trace.
            radial = series(2)
            skew = None
            if u is not None:
                skew = u * kernel[2]
            if quadrupoles is not None:
                skew = product * kernel[3] if skew is None else torch.addcmul(skew, product, kernel[3])
            scaled = radial * bond if skew is None else radial * bond - skew
            rows = {}
            for a, b in _PAIRS:
                entry = scaled[a] * bond[b]
                if skew is not None:
                    entry = torch.addcmul(entry, bond[a], skew[b], value=-1)
                rows[a, b] = entry.sum(2)
            if quadrupoles is not None:
                closeness = kernel[2]
                for a, b in _PAIRS:
                    rows[a, b] = rows[a, b] + (closeness @ quadrupoles[:, :, a, b, None]).squeeze(-1)
            matrix = [rows[min(a, b), max(a, b)] for a in range(3) for b in range(3)]
            second = torch.stack(matrix, -1).reshape(*charges.shape, 3, 3)
        return value, gradient, second
