"""Symmetrized products of Cartesian atomic bases: the rotation-invariant features of CACE (arXiv 2402.07472, eq. 8–12).

The atomic basis is held component first, an array per order: a (1, …), v (3, …), t (6, …), o (10, …), the unique
components of symmetric tensors of rank 0 to 3 in lexicographic order (xx, xy, xz, yy, yz, zz, …). With them in
front every contraction is a sum of products of long contiguous rows, which is what a CPU does best, and intermediate
contractions (t·v, o:t, o:o …) are shared by all the products that need them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement
from math import factorial

import torch
from torch import Tensor

#: Unique index tuples of symmetric tensors of rank 0 to 3.
COMPONENTS = tuple(tuple(combinations_with_replacement(range(3), rank)) for rank in range(4))


def multiplicities(rank: int) -> tuple[float, ...]:
    """How often each unique component stands in the full tensor: rank!/(lx! ly! lz!)."""
    return tuple(
        factorial(rank) / (factorial(c.count(0)) * factorial(c.count(1)) * factorial(c.count(2)))
        for c in COMPONENTS[rank]
    )


def _lookup(rank: int, *indices: int) -> int:
    return COMPONENTS[rank].index(tuple(sorted(indices)))


# t_ab as a full 3×3 matrix, o_a(bc) with its last two indices packed, and the pairs (a, b) of a packed matrix.
_FULL_2 = [_lookup(2, a, b) for a in range(3) for b in range(3)]
_HALF_3 = [_lookup(3, a, *bc) for a in range(3) for bc in COMPONENTS[2]]
_FIRST = [ab[0] for ab in COMPONENTS[2]]
_SECOND = [ab[1] for ab in COMPONENTS[2]]


def _pick(components: Tensor, rows: list[int]) -> Tensor:
    """Rows of the first dimension: the backward of index_select is an index_add, that of ``x[list]`` is much slower."""
    return components.index_select(0, torch.tensor(rows, device=components.device))


def invariant_names(max_l: int, max_nu: int) -> list[str]:
    """Names of the invariants for a largest rank and a largest number of factors, in the order of `products`."""
    order = {
        "a": (0, 1), "aa": (0, 2), "vv": (1, 2), "tt": (2, 2), "oo": (3, 2),
        "vtv": (2, 3), "ttt": (2, 3), "vto": (3, 3), "too": (3, 3),
        "vttv": (2, 4), "vvvo": (3, 4), "voov": (3, 4), "vtto": (3, 4), "otto": (3, 4),
    }  # fmt: skip
    return [name for name, (rank, factors) in order.items() if rank <= max_l and factors <= max_nu]


@dataclass(frozen=True, eq=False)
class Products:
    """Invariants (n, atoms, channels) of an atomic basis, and covariant vectors and tensors made on the way."""

    invariants: Tensor
    vectors: list[Tensor]
    tensors: list[Tensor]


def products(basis: list[Tensor], max_nu: int, covariants: bool = False) -> Products:
    """Multiply the atomic basis into invariants, and into vectors and tensors if ``covariants``.

    Parameters
    ----------
    basis
        Arrays (1, atoms, channels), (3, …), (6, …), (10, …), as many as the largest rank plus one.
    max_nu
        Most factors in a product, 1 to 4 (body order minus one).
    covariants
        Also give the vectors (3, atoms, channels) and packed symmetric tensors (6, atoms, channels), traces included.

    Returns
    -------
    Products
        Invariants in the order of `invariant_names`.
    """
    max_l = len(basis) - 1
    a = basis[0][0]
    found = {"a": a}
    vectors: list[Tensor] = []
    tensors: list[Tensor] = []
    if max_nu >= 2:
        found["aa"] = a * a
    if max_l >= 1:
        v = basis[1]
        vectors.append(v)
        if max_nu >= 2:
            found["vv"] = (v * v).sum(0)
    if max_l >= 2:
        t = basis[2]
        weights = t.new_tensor(multiplicities(2))[:, None, None]
        weighted_t = weights * t
        tensors.append(t)
        if max_nu >= 2:
            found["tt"] = (weighted_t * t).sum(0)
        if max_nu >= 3 or (covariants and max_nu >= 2):
            full = _pick(t, _FULL_2).unflatten(0, (3, 3))
            tv = (full * v).sum(1)
            vectors.append(tv)
        if max_nu >= 3:
            found["vtv"] = (v * tv).sum(0)
            square = (_pick(full, _FIRST) * _pick(full, _SECOND)).sum(1)
            found["ttt"] = (weighted_t * square).sum(0)
            tensors.append(square)
        if max_nu >= 4:
            found["vttv"] = (tv * tv).sum(0)
    if max_l >= 3:
        o = basis[3]
        if max_nu >= 2:
            found["oo"] = (o.new_tensor(multiplicities(3))[:, None, None] * o * o).sum(0)
        half = _pick(o, _HALF_3).unflatten(0, (3, 6))
        if max_nu >= 3:
            ot = (half * weighted_t).sum(1)
            found["vto"] = (v * ot).sum(0)
            weighted_half = half * weights
            square_o = (_pick(half, _FIRST) * _pick(weighted_half, _SECOND)).sum(1)
            found["too"] = (weighted_t * square_o).sum(0)
            vectors.append(ot)
            tensors.append(square_o)
        if max_nu >= 4:
            vv = weights * _pick(v, _FIRST) * _pick(v, _SECOND)
            found["vvvo"] = (v * (half * vv).sum(1)).sum(0)
            found["voov"] = (vv * square_o).sum(0)
            found["vtto"] = (tv * ot).sum(0)
            found["otto"] = (ot * ot).sum(0)
    stacked = torch.stack([found[name] for name in invariant_names(max_l, max_nu)])
    return Products(stacked, vectors if covariants else [], tensors if covariants else [])


def covariant_counts(max_l: int, max_nu: int) -> tuple[int, int]:
    """How many kinds of vectors and of tensors `products` gives with ``covariants``."""
    vectors = (max_l >= 1) + (max_l >= 2 and max_nu >= 2) + (max_l >= 3 and max_nu >= 3)
    tensors = (max_l >= 2) + (max_l >= 2 and max_nu >= 3) + (max_l >= 3 and max_nu >= 3)
    return int(vectors), int(tensors)


def monomials(unit: Tensor, max_l: int) -> Tensor:
    """Cartesian monomials x^lx y^ly z^lz of unit vectors (3, …) up to rank ``max_l``: (1 + 3 + 6 + 10, …)."""
    rows = [torch.ones_like(unit[0])]
    if max_l >= 1:
        rows.extend(unit.unbind(0))
    previous = {(): rows[0], (0,): unit[0], (1,): unit[1], (2,): unit[2]}
    for rank in range(2, max_l + 1):
        previous.update({c: previous[c[:-1]] * unit[c[-1]] for c in COMPONENTS[rank]})
        rows.extend(previous[c] for c in COMPONENTS[rank])
    return torch.stack(rows)


def traceless_tensors(packed: Tensor) -> Tensor:
    """Full symmetric traceless matrices (…, 3, 3) from packed symmetric components (6, …)."""
    full = _pick(packed, _FULL_2).unflatten(0, (3, 3)).movedim((0, 1), (-2, -1))
    trace = (packed[0] + packed[3] + packed[5]) / 3.0
    return full - trace[..., None, None] * torch.eye(3, dtype=packed.dtype, device=packed.device)
