"""Sums of triple products against one dense contraction."""

from __future__ import annotations

import threading

import pytest
import torch

from farfield.electrostatics import trilinear
from farfield.electrostatics.trilinear import triple_contract, triple_sum


def tables(rank, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    return random(2, 5, rank, 3), random(2, 5, rank, 4), random(2, 5, 2)


@pytest.fixture(params=[1 << 16, 30, 1], ids=["one-block", "some-blocks", "atom-by-atom"])
def _blocks(request, monkeypatch):
    monkeypatch.setattr(trilinear, "_BLOCK", {"cpu": request.param})


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("rank", [1, 3])
def test_sum_and_contraction_equal_einsum(rank, close):
    a, b, z = tables(rank)
    total = triple_sum(a, b, z)
    close(total, torch.einsum("mira,mirb,mic->mcab", a, b, z).flatten(2))
    weights = torch.randn_like(total)
    columns = triple_contract(weights, b, z)
    close(columns, torch.einsum("mcab,mirb,mic->mira", weights.unflatten(2, (3, 4)), b, z))


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("rank", [1, 2])
def test_derivatives_to_third_order(rank):
    a, b, z = tables(rank)
    g = torch.randn(2, 2, 12, dtype=torch.float64, requires_grad=True)

    def slopes(a, b, z):
        total = triple_sum(a, b, z)
        return torch.autograd.grad((total**3).sum(), (a, b, z), create_graph=True)

    assert torch.autograd.gradcheck(triple_sum, (a, b, z))
    assert torch.autograd.gradgradcheck(triple_sum, (a, b, z), fast_mode=True)
    assert torch.autograd.gradcheck(triple_contract, (g, b, z))
    assert torch.autograd.gradgradcheck(triple_contract, (g, b, z), fast_mode=True)
    small = tuple(t[:1, :2].detach().requires_grad_() for t in (a, b, z))
    assert torch.autograd.gradgradcheck(slopes, small, fast_mode=True)


def test_memory_first_made_in_inference_mode_serves_later_calls(monkeypatch, close):
    monkeypatch.setattr(trilinear, "_scratch", threading.local())
    a, b, z = tables(1)
    with torch.inference_mode():
        inferred = triple_sum(a.detach(), b.detach(), z.detach())
    total = triple_sum(a, b, z)
    close(total, inferred.clone())
    assert torch.autograd.grad(total.sum(), a)[0].shape == a.shape


@pytest.mark.parametrize("needed", [(True, False, False), (False, True, False), (False, False, True)])
def test_parts_of_the_derivative_alone(needed, close):
    given = tables(2)
    leaves = [t.detach().requires_grad_(need) for t, need in zip(given, needed, strict=True)]

    def second(function):
        first = torch.autograd.grad(
            function(*leaves).pow(2).sum(), [t for t in leaves if t.requires_grad], create_graph=True
        )
        return torch.autograd.grad(first[0].pow(2).sum(), [t for t in leaves if t.requires_grad])[0]

    def dense(a, b, z):
        return torch.einsum("mira,mirb,mic->mcab", a, b, z)

    close(second(triple_sum), second(dense))
