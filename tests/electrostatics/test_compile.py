"""torch.compile traces the solver in one graph that gives what eager mode gives, and its operators are sound."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

import compiled_sums
import pytest
import torch
from torch import Tensor

from farfield.electrostatics import kernels, mesh, open_charges, separable, spreading


@pytest.fixture(scope="module")
def differences() -> dict[str, float | str]:
    """What all cases of `compiled_sums` give, in a process without shape checks."""
    done = subprocess.run(
        [sys.executable, compiled_sums.__file__],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", compiled_sums.CASES)
def test_a_compiled_sum_is_the_eager_one(differences, case):
    """Energy and gradients in positions, cell and multipoles, without a graph break, for other cells on one graph."""
    found = differences[case]
    assert isinstance(found, float), found
    assert found < 1e-11


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


U, SHAPE, EXPONENT = 6.0 + normal(3, 3), (8, 6, 10), torch.tensor([0.7, 0.8], dtype=torch.float64)
OPERATORS: dict[str, tuple[Callable[..., object], list[Tensor], tuple[object, ...]]] = {
    "spread": (spreading._spread_operator, [U, normal(3, 4)], (SHAPE, 6, 1)),
    "gather": (spreading._gather_operator, [U, normal(*SHAPE)], (6, 1)),
    "convolve": (mesh._convolve_operator, [normal(*SHAPE), normal(8, 6, 6, seed=2)], ()),
    "correlate": (mesh._correlate_operator, [normal(*SHAPE), normal(*SHAPE, seed=2)], ()),
    "energy": (mesh._energy_operator, [normal(*SHAPE), normal(8, 6, 6, seed=2)], ()),
    "structure factors": (separable._structure_factors_operator, [normal(2, 3, 3), normal(2, 3, 4)], ((2, 1, 3), 1)),
    "moments": (separable._moments_operator, [normal(2, 8, 24), normal(2, 3, 3)], ((2, 1, 3), 1)),
    "kernels": (kernels._kernels_operator, [normal(2, 3).square(), EXPONENT[:, None]], (0, 2)),
    "open charges": (open_charges._charges_operator, [normal(2, 4, 3), normal(2, 4), EXPONENT], ()),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_twice_differentiable_and_tell_their_shapes(name):
    operator, given, options = OPERATORS[name]
    constants = [tensor for tensor in given if tensor is EXPONENT or tensor._base is EXPONENT]
    leaves = [tensor.clone().requires_grad_() for tensor in given[: len(given) - len(constants)]]

    def outcome(*leaves: Tensor) -> object:
        found = operator(*leaves, *constants, *options)
        return found[0] if name in ("energy", "open charges") else found

    assert torch.autograd.gradcheck(outcome, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(outcome, leaves, fast_mode=True)
    torch.library.opcheck(operator, (*leaves, *constants, *options), test_utils=("test_schema", "test_faketensor"))


def test_a_third_derivative_of_open_charges_is_refused_not_wrong():
    positions = normal(1, 3, 3).requires_grad_()
    energy = open_charges._charges_operator(positions, normal(1, 3), EXPONENT[:1])[0]
    (slope,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
    (second,) = torch.autograd.grad(slope.square().sum(), positions, create_graph=True)
    with pytest.raises(RuntimeError, match="no third derivatives"):
        torch.autograd.grad(second.sum(), positions)
