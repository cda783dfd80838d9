r"""Particle mesh of Gaussian multipoles: the reciprocal sum by fast Fourier transforms, for one large system.

Multipoles are spread over a mesh with cardinal B-splines of order p; with ρ̂ its discrete Fourier transform the energy
of all Gaussians, self-interaction included, is

    E = ½ Σ_k Ĝ(k) |ρ̂(k)|² ,   Ĝ(k) = (4π k_e/V) e^{−σ²k²/2}/k² · Π_a W_a(k)² / (Σ_m W_a(k + m N_a)²)² ,

W_a(k) = sinc(k/N_a)^p the transform of the spline along axis a. This influence function minimizes the error of the
energy for a given order and mesh (Hockney and Eastwood, Computer Simulation Using Particles, ch. 8, with analytic
differentiation; the Gaussian leaves nothing of the other images of φ̂). There is no real-space part: the Gaussians are
wide enough for the mesh. Potentials and their derivatives at the atoms are gathered with the same splines, which makes
the operator self-adjoint. Systems open along some axes have the kernels of `farfield.electrostatics.boundary`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from farfield.electrostatics.boundary import Truncation, kernel_factor
from farfield.electrostatics.compiled import kernels_for
from farfield.electrostatics.distributed import sum_over_ranks, to_each_rank
from farfield.electrostatics.graphs import constant, is_traced, operator
from farfield.electrostatics.lattice import inverse, volume_of
from farfield.electrostatics.spreading import Stencil, gather, spread
from farfield.units import COULOMB_CONSTANT

#: From this many points on it is worth it to compile what multiplies a spectrum (once on a machine).
_LEAST_FUSED = 1 << 15

#: Images of the spline's transform that are summed in the influence function, to each side.
_IMAGES = 8


def good_size(least: float, *, even: bool = False) -> int:
    """Smallest number of points with no prime factor above 7, for which Fourier transforms are fast."""
    size = max(1, math.ceil(least - 1e-9))
    while True:
        rest = size
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1 and not (even and size % 2):
            return size
        size += 1


def _spline_factor(size: int, order: int, half: bool, device: torch.device) -> Tensor:
    """W²/(Σ W²)² of each index along an axis, float64; h = 0 … N/2 if ``half``, else in the order of the FFT."""
    h = (
        torch.arange(size // 2 + 1, dtype=torch.float64, device=device)
        if half
        else torch.fft.fftfreq(size, dtype=torch.float64, device=device) * size
    )
    images = torch.arange(-_IMAGES, _IMAGES + 1, dtype=torch.float64, device=device)
    squares = torch.sinc(h[:, None] / size + images) ** (2 * order)
    return squares[:, _IMAGES] / squares.sum(1) ** 2


@functools.lru_cache(maxsize=256)
def _kept_spline_factor(size: int, order: int, half: bool, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # made in inference mode, autograd could not keep it
        return _spline_factor(size, order, half, device)


def _indices(shape: tuple[int, int, int], like: Tensor) -> list[Tensor]:
    n1, n2, n3 = shape
    first, second = (torch.round(torch.fft.fftfreq(n, dtype=torch.float64, device=like.device) * n) for n in (n1, n2))
    third = torch.arange(n3 // 2 + 1, dtype=torch.float64, device=like.device)
    return [first[:, None, None], second[None, :, None], third[None, None, :]]


def influence(
    cell: Tensor,
    smearing: Tensor,
    shape: tuple[int, int, int],
    order: int,
    truncation: Truncation | None = None,
    transform: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Influence function Ĝ on the half spectrum of a real mesh (eV/e²), float64, shape (n₁, n₂, n₃/2 + 1).

    Parameters
    ----------
    cell
        Cell vectors as rows (Å), float64, shape (3, 3): padded where the system is open.
    smearing
        σ (Å), shape ().
    shape, order
        Of the mesh and its splines.
    truncation
        How the kernel ends; None for a system that is periodic along all axes.
    transform
        v̂(k) of another interaction than Coulomb's, from σ²k² and σ, finite at k = 0, which is kept: it takes the place
        of 4π k_e e^{−σ²k²/2}/k².
    """
    h = _indices(shape, cell)
    # At the Nyquist index N/2 the signs of h are one: cross terms of k² there would break the symmetry k → −k.
    crossed = [torch.where(2 * part.abs() == n, 0.0, part) for part, n in zip(h, shape, strict=True)]
    if truncation is None:
        reciprocal = inverse(cell).mT * (2.0 * math.pi)
        metric = reciprocal @ reciprocal.mT
        squared = h[0] ** 2 * metric[0, 0] + h[1] ** 2 * metric[1, 1] + h[2] ** 2 * metric[2, 2]
        # Elsewhere than on the CPU the comparison would wait for the device, and a graph could not depend on it.
        oblique = is_traced(metric) or metric.requires_grad or metric.device.type != "cpu"
        if oblique or bool((metric - metric.diagonal().diag()).abs().max() > 1e-14 * metric.max()):
            squared = squared + 2.0 * (
                crossed[0] * crossed[1] * metric[0, 1]
                + crossed[0] * crossed[2] * metric[0, 2]
                + crossed[1] * crossed[2] * metric[1, 2]
            )
        if transform is None:
            origin = (h[0] == 0) & (h[1] == 0) & (h[2] == 0)
            kernel = torch.where(origin, 0.0, 1.0 / torch.where(origin, 1.0, squared))
    else:
        grid = torch.stack(torch.broadcast_tensors(*h), -1).reshape(-1, 3)
        along = torch.stack(torch.broadcast_tensors(*crossed), -1).reshape(-1, 3)[:, : truncation.periodic]
        squared, kernel = kernel_factor(grid, cell[None], truncation, crossed=along)
        squared, kernel = (value.reshape(shape[0], shape[1], shape[2] // 2 + 1) for value in (squared, kernel))
    volume = volume_of(cell)
    spline_factor = _spline_factor if is_traced(cell) else _kept_spline_factor
    factors = [
        spline_factor(n, order, axis == 2, cell.device).view([-1 if a == axis else 1 for a in range(3)])
        for axis, n in enumerate(shape)
    ]
    if transform is not None:
        return transform(smearing**2 * squared, smearing) * (factors[0] * factors[1] * factors[2] / volume)
    scale = 4.0 * math.pi * COULOMB_CONSTANT / volume
    return torch.exp(-0.5 * smearing**2 * squared) * kernel * (scale * factors[0] * factors[1] * factors[2])


def _counts(mesh: Tensor) -> Tensor:
    """How many reciprocal vectors of the full spectrum each of the half spectrum of a mesh stands for."""
    counts = torch.full((mesh.shape[2] // 2 + 1,), 2.0, dtype=mesh.dtype, device=mesh.device)
    # Filled, for a number assigned to an entry is copied from the host, which waits for the device.
    counts[:1].fill_(1.0)
    if mesh.shape[2] % 2 == 0:
        counts[-1:].fill_(1.0)
    return counts


def transform(mesh: Tensor) -> Tensor:
    """Half spectrum of a real mesh.

    On the CPU by scipy, as `inverse_transform`: the transforms of torch 2.13 with MKL 2024.2 write beyond their memory
    where there are some thousands of rows (float64, 16×512×512 points for instance: the process dies in ``free``
    sooner or later).
    """
    if mesh.device.type != "cpu":
        return torch.fft.rfftn(mesh)
    from scipy.fft import rfftn

    return torch.from_numpy(rfftn(mesh.numpy(), workers=torch.get_num_threads()))


def inverse_transform(spectrum: Tensor, size: int, *, overwrite: bool = False) -> Tensor:
    """Real mesh Σ_k s(k) e^{ik·g} of a half spectrum, ``size`` points along its last axis.

    With ``overwrite`` the memory of the spectrum may be worked in: what it holds is lost.
    """
    n1, n2, _ = spectrum.shape
    if spectrum.device.type != "cpu":
        return torch.fft.irfftn(spectrum, s=(n1, n2, size), norm="forward")
    from scipy.fft import ifftn, irfft

    threads = torch.get_num_threads()
    rows = ifftn(spectrum.numpy(), axes=(0, 1), norm="forward", overwrite_x=overwrite, workers=threads)
    return torch.from_numpy(irfft(rows, size, axis=2, norm="forward", workers=threads))


def _convolve_with_energy(density: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor | None]:
    """Mesh of Σ_k Ĝ ρ̂ e^{ik·g}, and ½ Σ_k Ĝ |ρ̂|² where it comes with it for nothing."""
    spectrum, energy = transform(density), None
    if density.numel() >= _LEAST_FUSED and density.device.type == "cpu" and kernels_for("cpu") is not None:
        from farfield.electrostatics.spectrum_kernels import multiply

        energy = multiply(spectrum, kernel, _counts(density))
    else:
        spectrum.mul_(kernel)
    return inverse_transform(spectrum, density.shape[2], overwrite=True), energy


def _convolve(density: Tensor, kernel: Tensor) -> Tensor:
    return _convolve_with_energy(density, kernel)[0]


def _correlate(first: Tensor, second: Tensor) -> Tensor:
    left, right = transform(first), transform(second)
    return (left.real * right.real + left.imag * right.imag) * _counts(first)


def _energy(density: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    potential, energy = _convolve_with_energy(density, kernel)
    if energy is None:
        energy = 0.5 * (density * potential).sum(dtype=torch.float64)
    return energy, potential


class _Convolve(torch.autograd.Function):
    """Mesh of Σ_k Ĝ ρ̂ e^{ik·g}: linear and self-adjoint in ρ."""

    @staticmethod
    def forward(ctx, density, kernel):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(density, kernel)
        return _convolve(density, kernel)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        density, kernel = ctx.saved_tensors
        on_density = _Convolve.apply(gradient, kernel) if ctx.needs_input_grad[0] else None
        on_kernel = _Correlate.apply(gradient, density) if ctx.needs_input_grad[1] else None
        return on_density, on_kernel


class _Correlate(torch.autograd.Function):
    """Re ρ̂₁* ρ̂₂ on the half spectrum, times how many reciprocal vectors each entry stands for."""

    @staticmethod
    def forward(ctx, first, second):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(first, second)
        return _correlate(first, second)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        first, second = ctx.saved_tensors
        on_first = _Convolve.apply(second, gradient) if ctx.needs_input_grad[0] else None
        on_second = _Convolve.apply(first, gradient) if ctx.needs_input_grad[1] else None
        return on_first, on_second


class _EnergyAndPotential(torch.autograd.Function):
    """½ Σ_k Ĝ |ρ̂|² and the mesh of Σ_k Ĝ ρ̂ e^{ik·g}, which is its derivative in ρ."""

    @staticmethod
    def forward(ctx, density, kernel):  # type: ignore[no-untyped-def]
        ctx.set_materialize_grads(False)
        energy, potential = _energy(density, kernel)
        ctx.save_for_backward(density, kernel, potential)
        return energy, potential

    @staticmethod
    def backward(ctx, gradient, along):  # type: ignore[no-untyped-def]
        # The potential is a result, so that what is made of it here has derivatives, too.
        density, kernel, potential = ctx.saved_tensors
        on_density = on_kernel = None
        if gradient is not None:
            scale = gradient.to(density.dtype)
            # An energy is mostly differentiated as it is: a pass over the mesh less. A device would be waited for.
            as_it_is = not scale.requires_grad and scale.device.type == "cpu" and float(scale) == 1.0
            on_density = potential if as_it_is else scale * potential
            on_kernel = 0.5 * scale * _Correlate.apply(density, density) if ctx.needs_input_grad[1] else None
        if along is not None:
            more = _Convolve.apply(along, kernel)
            on_density = more if on_density is None else on_density + more
            if ctx.needs_input_grad[1]:
                more = _Correlate.apply(along, density)
                on_kernel = more if on_kernel is None else on_kernel + more
        return on_density, on_kernel


def _save_inputs(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _convolve_backward(ctx, gradient):  # type: ignore[no-untyped-def]
    density, kernel = ctx.saved_tensors
    on_density = _convolve_operator(gradient, kernel) if ctx.needs_input_grad[0] else None
    on_kernel = _correlate_operator(gradient, density) if ctx.needs_input_grad[1] else None
    return on_density, on_kernel


def _correlate_backward(ctx, gradient):  # type: ignore[no-untyped-def]
    first, second = ctx.saved_tensors
    on_first = _convolve_operator(second, gradient) if ctx.needs_input_grad[0] else None
    on_second = _convolve_operator(first, gradient) if ctx.needs_input_grad[1] else None
    return on_first, on_second


def _energy_save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, output[1])


def _energy_backward(ctx, gradient, along_potential):  # type: ignore[no-untyped-def]
    # The potential is a result of the operator, so that what is made of it here has derivatives, too.
    density, kernel, potential = ctx.saved_tensors
    on_density = on_kernel = None
    if gradient is not None:
        scale = gradient.to(density.dtype)
        on_density = scale * potential
        on_kernel = 0.5 * scale * _correlate_operator(density, density) if ctx.needs_input_grad[1] else None
    if along_potential is not None:
        more = _convolve_operator(along_potential, kernel)
        on_density = more if on_density is None else on_density + more
        if ctx.needs_input_grad[1]:
            more = _correlate_operator(along_potential, density)
            on_kernel = more if on_kernel is None else on_kernel + more
    return on_density, on_kernel


_convolve_operator = operator(
    "mesh_convolve(Tensor density, Tensor kernel) -> Tensor",
    _convolve,
    shapes=lambda density, kernel: torch.empty_like(density),
    save=_save_inputs,
    backward=_convolve_backward,
)
_correlate_operator = operator(
    "mesh_correlate(Tensor first, Tensor second) -> Tensor",
    _correlate,
    shapes=lambda first, second: first.new_empty((first.shape[0], first.shape[1], first.shape[2] // 2 + 1)),
    save=_save_inputs,
    backward=_correlate_backward,
)
_energy_operator = operator(
    "mesh_energy(Tensor density, Tensor kernel) -> (Tensor, Tensor)",
    _energy,
    shapes=lambda density, kernel: (density.new_empty((), dtype=torch.float64), torch.empty_like(density)),
    save=_energy_save,
    backward=_energy_backward,
)


#: Which of xx, xy, xz, yy, yz, zz an element of a symmetric matrix is, rows xx, xy, …, zz of all nine.
_SYMMETRIC = tuple(tuple(float(place == here) for here in range(6)) for place in (0, 1, 2, 1, 3, 4, 2, 4, 5))


def _squares(jacobian: Tensor) -> Tensor:
    """From second derivatives xx, xy, xz, yy, yz, zz of the mesh to those in space, (9, 6), and back for quadrupoles.

    One product of matrices for all atoms: two by two they are as many calls as there are atoms.
    """
    both = jacobian[:, None, :, None] * jacobian[None, :, None, :]
    return both.reshape(9, 9) @ constant(_SYMMETRIC, jacobian)


class MeshGeometry:
    """Positions of one system on a mesh, ready to be applied to multipoles.

    Parameters
    ----------
    positions
        Shape (atoms, 3) (Å).
    cell
        Cell vectors as rows (Å), float64, shape (3, 3): padded where the system is open.
    basis
        Integer matrix to reduced cell vectors, float64, shape (3, 3).
    kernel
        What `influence` gives for the reduced cell, in the dtype of the positions.
    shape, order
        Of the mesh and its splines.
    source_degree, field_degree
        Derivatives that the multipoles need (0 charges, 1 dipoles, 2 quadrupoles) and that are wanted of the potential
        (0 potential, 1 field, 2 field gradient).
    ranks
        The process group whose ranks hold the other atoms of the system.
    """

    def __init__(
        self,
        positions: Tensor,
        cell: Tensor,
        basis: Tensor,
        kernel: Tensor,
        shape: tuple[int, int, int],
        order: int,
        source_degree: int,
        field_degree: int,
        ranks: dist.ProcessGroup | None = None,
    ) -> None:
        self.dtype, self._ranks = positions.dtype, ranks
        self.field_degree = field_degree
        to_fractional = inverse(basis @ cell)
        points = constant(shape, positions, torch.float64)
        # Mesh coordinates in float64: float32 would blur where an atom stands between two points of a long axis.
        fractional = positions.double() @ to_fractional
        self._u = (fractional - torch.floor(fractional.detach())) * points
        # ∇_r = J ∇_u
        self._jacobian = (to_fractional * points).to(self.dtype)
        self._squares = _squares(self._jacobian) if max(source_degree, field_degree) > 1 else None
        self._stencil = Stencil(self._u, shape, order)
        self._kernel = kernel

    def density(self, charges: Tensor, dipoles: Tensor | None, quadrupoles: Tensor | None) -> Tensor:
        """Mesh that multipoles (atoms, …) are spread to."""
        columns, degree = [charges[:, None]], 0
        if dipoles is not None or quadrupoles is not None:
            degree = 1
            columns.append(charges.new_zeros(len(charges), 3) if dipoles is None else dipoles @ self._jacobian)
        if quadrupoles is not None and self._squares is not None:
            degree = 2
            columns.append(0.5 * quadrupoles.flatten(1) @ self._squares)
        mesh = spread(self._u, torch.cat(columns, 1), self._stencil, degree)
        return sum_over_ranks(mesh, self._ranks)

    def energy(self, density: Tensor) -> Tensor:
        """Energy (eV), float64, self-interaction included."""
        return self._energy_and_mesh(density)[0]

    def potential(self, density: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Potential (atoms,), its gradient and second derivatives at the atoms, self-interaction included."""
        if is_traced(density):
            return self._at_atoms(_convolve_operator(density, self._kernel))
        return self._at_atoms(_Convolve.apply(density, self._kernel))

    def energy_and_potential(self, density: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor | None, Tensor | None]]:
        """Give both, by the same transforms."""
        energy, mesh = self._energy_and_mesh(density)
        return energy, self._at_atoms(mesh)

    def _energy_and_mesh(self, density: Tensor) -> tuple[Tensor, Tensor]:
        if is_traced(density):
            energy, mesh = _energy_operator(density, self._kernel)
        else:
            energy, mesh = _EnergyAndPotential.apply(density, self._kernel)
        return energy, mesh

    def _at_atoms(self, mesh: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        values = gather(self._u, to_each_rank(mesh, self._ranks), self._stencil, self.field_degree)
        gradient = second = None
        if self.field_degree > 0:
            gradient = values[:, 1:4] @ self._jacobian.mT
        if self._squares is not None and self.field_degree > 1:
            second = (values[:, 4:10] @ self._squares.mT).unflatten(1, (3, 3))
        return values[:, 0], gradient, second
