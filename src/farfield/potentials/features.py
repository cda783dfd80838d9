"""What a short-range model hands to the long range, and what the two together return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from farfield.atoms.batch import AtomicBatch


@dataclass(frozen=True, eq=False)
class Features:
    """Short-range energy and descriptors of atoms.

    Attributes
    ----------
    energy
        Short-range energy of each system (eV), shape (systems,).
    scalars
        Invariant features, shape (atoms, F).
    vectors
        Features that rotate as vectors, shape (atoms, C, 3), where the model has them.
    tensors
        Features that rotate as symmetric traceless tensors, shape (atoms, C, 3, 3), where the model has them.
    """

    energy: Float[Tensor, " systems"]
    scalars: Float[Tensor, "atoms features"]
    vectors: Float[Tensor, "atoms channels 3"] | None = None
    tensors: Float[Tensor, "atoms tensor_channels 3 3"] | None = None


@runtime_checkable
class Backbone(Protocol):
    """A short-range model as farfield sees it: an ``nn.Module`` with these attributes.

    Attributes
    ----------
    cutoff
        Range of the neighbour list it needs (Å).
    receptive_radius
        Distance up to which an atom's features feel other atoms (Å): the cutoff times the number of layers.
    n_scalars, n_vectors, n_tensors
        Widths of the features it gives; 0 where it gives none.
    """

    cutoff: float
    receptive_radius: float
    n_scalars: int
    n_vectors: int
    n_tensors: int

    def __call__(self, batch: AtomicBatch) -> Features:
        """Energy and features of a batch with neighbours within `cutoff`."""
        ...

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild the module: plain JSON values."""
        ...

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Rebuild the module from `config()`, with fresh weights."""
        ...
