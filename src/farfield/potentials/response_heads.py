"""Heads for how atoms respond, and directional features for models that give scalars only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from farfield.atoms.batch import AtomicBatch
from farfield.atoms.neighbors import bond_vectors, neighbors_within
from farfield.potentials.linear import ScaledLinear
from farfield.potentials.radial import bessel_basis, polynomial_cutoff


class PositiveHead(nn.Module):
    """A positive number for each atom: ``scale`` × softplus of a perceptron of its scalars, near ``scale`` at first.

    Parameters
    ----------
    scalars
        Width of the invariant features.
    n_hidden
        Widths of the hidden layers.
    scale
        Unit of the output.
    """

    def __init__(self, scalars: int, *, n_hidden: Sequence[int] = (32, 16), scale: float = 1.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for n_in, n_out in zip([scalars, *n_hidden], n_hidden, strict=False):
            layers.extend([ScaledLinear(n_in, n_out), nn.SiLU()])
        self.perceptron = nn.Sequential(*layers, ScaledLinear(n_hidden[-1] if n_hidden else scalars, 1))
        self.scale = scale

    def forward(self, scalars: Float[Tensor, "atoms features"]) -> Float[Tensor, " atoms"]:
        """Return the numbers."""
        # softplus(½) = .97
        return self.scale * nn.functional.softplus(self.perceptron(scalars)[:, 0] + 0.5)


class AnisotropyHead(nn.Module):
    """A symmetric positive semidefinite matrix for each atom, in units of ``scale``.

    A = Σ_k w_k w_kᵀ + T², with three vectors w_k mixed from vector features and T from symmetric tensor features, where
    there are any, by weights that the scalars give.
    """

    def __init__(self, scalars: int, vectors: int, tensors: int, *, scale: float = 1.0) -> None:
        super().__init__()
        self.vectors = _gate(scalars, 3 * vectors) if vectors else None
        self.tensors = _gate(scalars, tensors) if tensors else None
        self.scale = scale

    def forward(
        self,
        scalars: Float[Tensor, "atoms features"],
        vectors: Float[Tensor, "atoms channels 3"] | None,
        tensors: Float[Tensor, "atoms tensor_channels 3 3"] | None,
    ) -> Float[Tensor, "atoms 3 3"]:
        """Return the matrices."""
        total = scalars.new_zeros(len(scalars), 3, 3)
        if self.vectors is not None and vectors is not None:
            weights = self.vectors(scalars).reshape(len(scalars), 3, -1)
            mixed = weights @ vectors
            total = total + mixed.mT @ mixed
        if self.tensors is not None and tensors is not None:
            combined = torch.einsum("ac,acxy->axy", self.tensors(scalars), tensors)
            symmetric = 0.5 * (combined + combined.mT)
            total = total + symmetric @ symmetric
        # Rounding must not leave a skew part.
        return 0.5 * self.scale * (total + total.mT)


def _gate(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(ScaledLinear(n_in, n_out), nn.SiLU(), ScaledLinear(n_out, n_out))


class BondFeatures(nn.Module):
    """Vectors and tensors from scalars × bond vectors, for models that give scalars only.

    V_i = Σ_j w(r_ij, s_j) r̂_ij and T_i = Σ_j w'(r_ij, s_j) (r̂_ij r̂_ij − 1/3) over the neighbours j within a cutoff,
    with weights that are products of learned radial functions and linear maps of the neighbour's scalars.

    Parameters
    ----------
    scalars
        Width of the invariant features.
    channels
        Number of vectors, and of tensors.
    cutoff
        Range (Å).
    n_bessel
        Number of Bessel functions.
    """

    def __init__(self, scalars: int, channels: int, cutoff: float, *, n_bessel: int = 6) -> None:
        super().__init__()
        self.channels, self.cutoff, self.n_bessel = channels, cutoff, n_bessel
        self.radial = ScaledLinear(n_bessel, 2 * channels, bias=False)
        self.neighbor = ScaledLinear(scalars, 2 * channels)

    def forward(
        self, batch: AtomicBatch, scalars: Float[Tensor, "atoms features"]
    ) -> tuple[Float[Tensor, "atoms channels 3"], Float[Tensor, "atoms channels 3 3"]]:
        """Return the vectors and the traceless symmetric tensors.

        Raises
        ------
        ValueError
            If the batch has no neighbours, or only nearer ones.
        """
        pairs = neighbors_within(batch, self.cutoff, f"`bond_cutoff` is {self.cutoff:g} Å")
        bonds = bond_vectors(batch).to(scalars.dtype)
        lengths = bonds.norm(dim=1)
        radial = bessel_basis(lengths, self.cutoff, self.n_bessel) * polynomial_cutoff(lengths, self.cutoff)[:, None]
        weights = self.radial(radial) * self.neighbor(scalars)[pairs.j]
        unit = bonds / lengths[:, None]
        third = torch.eye(3, dtype=unit.dtype, device=unit.device) / 3.0
        dyads = unit[:, :, None] * unit[:, None, :] - third
        first, second = weights[:, : self.channels], weights[:, self.channels :]
        vectors = scalars.new_zeros(len(scalars), self.channels, 3)
        tensors = scalars.new_zeros(len(scalars), self.channels, 3, 3)
        return (
            vectors.index_add(0, pairs.i, first[:, :, None] * unit[:, None, :]),
            tensors.index_add(0, pairs.i, second[:, :, None, None] * dyads[:, None]),
        )


def bounded(values: Float[Tensor, " atoms"] | Float[Tensor, "atoms 3 3"], limit: float) -> Tensor:
    """Numbers or eigenvalues x mapped to x/(1 + x/limit): unchanged where small, always below the limit."""
    if values.ndim == 1:
        return values / (1.0 + values / limit)
    one = torch.eye(3, dtype=values.dtype, device=values.device)
    inverse = torch.linalg.inv(one + values / limit)
    return 0.5 * (values @ inverse + inverse.mT @ values)
