"""Run the kernels for GPUs in Triton's interpreter, on tensors of the CPU, beside the plain ones.

    TRITON_INTERPRET=1 python triton_interpreted.py

prints, as JSON, the largest difference of what is spread and of what is gathered for each order, degree and dtype.
"""

from __future__ import annotations

import json

import torch

from farfield.electrostatics import spline_triton, spreading
from farfield.electrostatics.spreading import Stencil, count_of

ATOMS = 7


def differences(
    shape: tuple[int, int, int], order: int, degree: int, dtype: torch.dtype, in_order: bool
) -> tuple[float, float]:
    """Largest differences of spreading and gathering; the number of atoms is no multiple of what a program takes."""
    generator = torch.Generator().manual_seed(order + degree)
    u = (3.0 * torch.rand(ATOMS, 3, generator=generator, dtype=torch.float64) - 1.0) * torch.tensor(shape)
    coefficients = torch.randn(ATOMS, count_of(degree), generator=generator, dtype=dtype)
    mesh = torch.randn(shape, generator=generator, dtype=dtype)
    places = None if in_order else torch.randperm(ATOMS, generator=generator)
    plain = Stencil(u, shape, order, compiled=False)
    made, out = torch.zeros_like(mesh), torch.empty_like(coefficients)
    spline_triton.spread(u, coefficients, places, made, order, degree)
    spline_triton.gather(u, mesh, places, out, order, degree)
    return (
        float((made - spreading._spread(u, coefficients, plain, degree)).abs().max()),
        float((out - spreading._gather(u, mesh, plain, degree)).abs().max()),
    )


def main() -> None:
    found = {}
    for order, degree in ((5, 0), (6, 2), (8, 3)):
        for dtype in (torch.float64, torch.float32):
            # a mesh smaller than the splines wraps more than once
            for shape, in_order in (((12, 9, 10), False), ((3, 2, 4), True)):
                found[f"order {order}, degree {degree}, {dtype}, {shape}"] = (
                    torch.finfo(dtype).eps,
                    *differences(shape, order, degree, dtype, in_order),
                )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
