"""Symmetrized products against their definition as contractions of full tensors."""

from __future__ import annotations

import pytest
import torch

from farfield.potentials.invariants import (
    COMPONENTS,
    covariant_counts,
    invariant_names,
    monomials,
    products,
    traceless_tensors,
)


def random_basis(max_l: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(max_l)
    return [
        torch.randn(len(COMPONENTS[rank]), 4, 5, generator=generator, dtype=torch.float64) for rank in range(max_l + 1)
    ]


def full(packed: torch.Tensor, rank: int) -> torch.Tensor:
    """The whole symmetric tensor, (3, …, 3, atoms, channels), from its unique components."""
    index = [COMPONENTS[rank].index(tuple(sorted(c))) for c in torch.cartesian_prod(*[torch.arange(3)] * rank).tolist()]
    return packed[index].reshape(*[3] * rank, *packed.shape[1:])


def test_every_invariant_is_the_contraction_that_its_name_says():
    basis = random_basis(3)
    a, v = basis[0][0], basis[1]
    t, o = full(basis[2], 2), full(basis[3], 3)
    expected = {
        "a": a,
        "aa": a * a,
        "vv": torch.einsum("xnk,xnk->nk", v, v),
        "tt": torch.einsum("xynk,xynk->nk", t, t),
        "oo": torch.einsum("xyznk,xyznk->nk", o, o),
        "vtv": torch.einsum("xnk,xynk,ynk->nk", v, t, v),
        "ttt": torch.einsum("xynk,yznk,zxnk->nk", t, t, t),
        "vto": torch.einsum("xnk,yznk,xyznk->nk", v, t, o),
        "too": torch.einsum("xynk,xzwnk,yzwnk->nk", t, o, o),
        "vttv": torch.einsum("xnk,xynk,yznk,znk->nk", v, t, t, v),
        "vvvo": torch.einsum("xnk,ynk,znk,xyznk->nk", v, v, v, o),
        "voov": torch.einsum("xnk,xzwnk,yzwnk,ynk->nk", v, o, o, v),
        "vtto": torch.einsum("xnk,xynk,zwnk,yzwnk->nk", v, t, t, o),
        "otto": torch.einsum("xyznk,yznk,xuvnk,uvnk->nk", o, t, o, t),
    }
    found = products(basis, 4).invariants
    assert invariant_names(3, 4) == list(expected)
    for name, value in zip(expected, found, strict=True):
        torch.testing.assert_close(value, expected[name], msg=name)


@pytest.mark.parametrize("max_l", [0, 1, 2, 3])
@pytest.mark.parametrize("max_nu", [1, 2, 3, 4])
def test_lower_settings_give_the_leading_invariants(max_l, max_nu):
    basis = random_basis(3)[: max_l + 1]
    all_names = invariant_names(3, 4)
    everything = products(random_basis(3), 4).invariants
    found = products(random_basis(3)[: max_l + 1], max_nu, covariants=True)
    names = invariant_names(max_l, max_nu)
    assert len(found.invariants) == len(names)
    if max_l == 3:  # the same random numbers stand in the lower ranks only then
        torch.testing.assert_close(found.invariants, everything[[all_names.index(name) for name in names]])
    assert (len(found.vectors), len(found.tensors)) == covariant_counts(max_l, max_nu)
    assert len(basis) == max_l + 1


def rotation(seed: int, proper: bool) -> torch.Tensor:
    matrix, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    return matrix * (torch.linalg.det(matrix) if proper else -torch.linalg.det(matrix))


@pytest.mark.parametrize("proper", [True, False], ids=["rotation", "reflection"])
def test_invariants_do_not_change_and_covariants_turn(proper):
    matrix = rotation(3, proper)
    points = torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = torch.randn(4, 9, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def basis(vectors: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.einsum("cnj,njk->cnk", monomials(vectors, 3), weights).split([1, 3, 6, 10]))

    before = products(basis(points), 4, covariants=True)
    after = products(basis(torch.einsum("xy,ynj->xnj", matrix, points)), 4, covariants=True)
    torch.testing.assert_close(after.invariants, before.invariants)
    for old, new in zip(before.vectors, after.vectors, strict=True):
        torch.testing.assert_close(new, torch.einsum("xy,ynk->xnk", matrix, old))
    for old, new in zip(before.tensors, after.tensors, strict=True):
        old, new = traceless_tensors(old), traceless_tensors(new)
        torch.testing.assert_close(new, matrix @ old @ matrix.T)
        torch.testing.assert_close(new.diagonal(dim1=-1, dim2=-2).sum(-1), torch.zeros(4, 5, dtype=torch.float64))
