"""What adapters share: the protocol of a host, its elements, and its edges from an `AtomicBatch`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from farfield.atoms.batch import AtomicBatch
from farfield.atoms.neighbors import find_neighbors, neighbors_within
from farfield.potentials.features import Features

#: Largest disagreement of a model and its adapter's copy (eV, relative above 1 eV) on a probe; it is rounding only.
_AGREEMENT = 1e-5


@dataclass(frozen=True, eq=False)
class Edges:
    """Pairs of a batch within a host's cutoff, each from either end, sorted by centre.

    ``shifts`` are the whole cell vectors, in Å and differentiable in the cell: the vector of a pair is
    ``positions[j] - positions[i] + shifts``. ``images`` are the same in units of the cell vectors.
    """

    i: Int[Tensor, " pairs"]
    j: Int[Tensor, " pairs"]
    shifts: Float[Tensor, "pairs 3"]
    images: Int[Tensor, "pairs 3"]

    def vectors(self, positions: Float[Tensor, "atoms 3"]) -> Float[Tensor, "pairs 3"]:
        """Vectors from ``i`` to ``j`` (Å), differentiable in positions and cell."""
        return positions[self.j] - positions[self.i] + self.shifts


class HostBackbone(nn.Module):
    """A potential of another package as a backbone (`farfield.potentials.features.Backbone`).

    An adapter adds: ``forward(batch)``, which gives `Features` whose energy leaves out `reference_energies`;
    `from_host`; to ``self._config`` the arguments that it has beside those here. It hands ``batch.positions`` and the
    shifts of `edges` to the host and takes no force of it, so that forces and stress are derivatives of the whole
    energy. The weights that it has are those of the host, in its own ``state_dict``: a model file needs no pickle.

    Parameters
    ----------
    elements
        Atomic numbers that the host knows, in its order.
    cutoff
        Range of its edges (Å).

    Attributes
    ----------
    reference_energies
        Energy of each element (eV) that the host adds, by atomic number; farfield keeps these in double precision.
    pretrained
        Whether the weights come from a model of the host, and so are in use as they are.
    """

    element_index: Tensor
    scalar_scale: Tensor
    vector_scale: Tensor
    tensor_scale: Tensor

    def __init__(self, elements: Sequence[int], cutoff: float) -> None:
        super().__init__()
        if not elements or any(not 1 <= int(z) <= 118 for z in elements) or len(set(elements)) != len(elements):
            raise ValueError(f"`elements` is {list(elements)} but must be different atomic numbers between 1 and 118")
        if not cutoff > 0:
            raise ValueError(f"`cutoff` is {cutoff} but must be positive (Å)")
        self.elements = [int(z) for z in elements]
        self.cutoff = float(cutoff)
        self.reference_energies: dict[int, float] = {}
        self.pretrained = False
        self._config: dict[str, Any] = {"elements": self.elements, "cutoff": self.cutoff}
        index = torch.full((119,), -1, dtype=torch.int64)
        index[torch.tensor(self.elements)] = torch.arange(len(self.elements))
        self.register_buffer("element_index", index, persistent=False)

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild the module."""
        return dict(self._config)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Rebuild the module from `config`, with fresh weights."""
        return cls(**config)

    @classmethod
    def from_host(cls, model: nn.Module, *, head: str | None = None) -> Self:
        """Make an adapter of a model of the host, with a copy of its weights; the model stays as it is.

        ``head`` says which of several heads gives the energy, where the model has such.
        """
        raise NotImplementedError

    @classmethod
    def from_checkpoint(cls, path: str | Path, *, trust: bool = False, head: str | None = None) -> Self:
        """Make an adapter of a file in which the host keeps a whole model; ``head`` as in `from_host`.

        Raises
        ------
        FileNotFoundError, ValueError
            As `load` does, and `from_host`.
        """
        return cls.from_host(cls.load(path, trust=trust, head=head), head=head)

    @classmethod
    def load(cls, path: str | Path, *, trust: bool = False, head: str | None = None) -> nn.Module:
        """Load the model that a file of the host keeps, as it is; ``head`` as in `from_host`.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If ``trust`` is not set: such files are pickles, which may run any code when they are loaded.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no checkpoint {str(path)!r}")
        if not trust:
            raise ValueError(
                f"{str(path)!r} is a pickle, which may run any code when it is loaded: set `trust` to true if you know "
                "where it comes from"
            )
        cls.prepare()
        return cls.read(path, head)

    @classmethod
    def prepare(cls) -> None:
        """Import what loading the host's files needs."""

    @classmethod
    def read(cls, path: Path, head: str | None) -> nn.Module:
        """Return the model that a trusted file of the host keeps."""
        return torch.load(path, map_location="cpu", weights_only=False)

    def species(self, batch: AtomicBatch) -> Int[Tensor, " atoms"]:
        """Place of each atom's element in `elements`.

        Raises
        ------
        ValueError
            If (seen on the CPU) an element is not among them.
        """
        found = self.element_index[batch.numbers]
        # on a GPU the check would wait for the device; there the one-hot encoding stops on a negative place
        if found.device.type == "cpu" and bool((found < 0).any()):
            unknown = sorted(set(batch.numbers[found < 0].tolist()))
            raise ValueError(f"Atomic numbers {unknown} are not among the host's elements {self.elements}")
        return found

    def edges(self, batch: AtomicBatch) -> Edges:
        """Return the pairs within `cutoff`, also of a batch whose neighbours reach further.

        Raises
        ------
        ValueError
            If the batch has no neighbours, or only nearer ones.
        """
        pairs = neighbors_within(batch, self.cutoff, f"the host's cutoff is {self.cutoff:g} Å")
        shifts = torch.einsum("ps,psc->pc", pairs.shifts.to(batch.cell.dtype), batch.cell[batch.system[pairs.i]])
        found = Edges(pairs.i, pairs.j, shifts, pairs.shifts)
        if pairs.cutoff == self.cutoff:
            return found
        # Some hosts do not end smoothly beyond their cutoff but rely on edges to end there.
        with torch.no_grad():
            near = found.vectors(batch.positions).norm(dim=1) < self.cutoff
        return Edges(pairs.i[near], pairs.j[near], shifts[near], pairs.shifts[near])

    # ---- scales of features, for adapters that use them --------------------------------------------------------------

    def set_widths(self, n_scalars: int, n_vectors: int = 0, n_tensors: int = 0) -> None:
        """Say how many features there are, and make their scales, all one; in double precision."""
        self.n_scalars, self.n_vectors, self.n_tensors = n_scalars, n_vectors, n_tensors
        for name, width in (("scalar", n_scalars), ("vector", n_vectors), ("tensor", n_tensors)):
            self.register_buffer(f"{name}_scale", torch.ones(width, dtype=torch.float64))

    def scaled(
        self, energy: Tensor, scalars: Tensor, vectors: Tensor | None = None, tensors: Tensor | None = None
    ) -> Features:
        """Features times their scales; kinds that there are none of are left out."""
        return Features(
            energy=energy,
            scalars=scalars * self.scalar_scale,
            vectors=None if vectors is None or not self.n_vectors else vectors * self.vector_scale[:, None],
            tensors=None if tensors is None or not self.n_tensors else tensors * self.tensor_scale[:, None, None],
        )

    @torch.no_grad()
    def fit_scales(self, scalars: Tensor, vectors: Tensor | None = None, tensors: Tensor | None = None) -> None:
        """Set the scales so that features (without them) are of order one: mean square length 1 for each kind."""
        for scale, features in (
            (self.scalar_scale, scalars),
            (self.vector_scale, vectors),
            (self.tensor_scale, tensors),
        ):
            if features is not None and len(scale):
                # one factor for all channels of a kind: which of them are small is what the model has learned
                size = (features.square().sum() / max(len(features) * len(scale), 1)).sqrt()
                scale.fill_(1.0 / float(size.clamp(min=1e-6)))


def probe(elements: Sequence[int], cutoff: float) -> AtomicBatch:
    """Make a cluster of all elements within a cutoff (Å), to compare two models with, in double precision."""
    generator = torch.Generator().manual_seed(0)
    count = 2 * len(elements) + 2
    # at the density of a solid, however many the elements
    width = 0.5 * cutoff * max(1.0, (count / 8.0) ** (1.0 / 3.0))
    return find_neighbors(
        AtomicBatch(
            positions=width * torch.randn(count, 3, generator=generator, dtype=torch.float64),
            numbers=torch.tensor(elements)[torch.arange(count) % len(elements)],
            cell=torch.zeros(1, 3, 3, dtype=torch.float64),
            pbc=torch.zeros(1, 3, dtype=torch.bool),
            system=torch.zeros(count, dtype=torch.int64),
        ),
        cutoff,
    )


def check_copy(kind: str, mine: Tensor, theirs: Tensor) -> None:
    """Compare the energies (eV) of an adapter and of its model on a `probe`.

    Raises
    ------
    ValueError
        If they differ: settings of the model that were not seen show so.
    """
    if not bool(((mine - theirs).abs() <= _AGREEMENT * (1.0 + theirs.abs())).all()):
        raise ValueError(
            f"this {kind} model cannot be rebuilt from its settings: energies differ by up to "
            f"{float((mine - theirs).abs().max()):.3g} eV; it has an option that the adapter does not know"
        )


def columns_of(layers: Sequence[Any]) -> dict[str, list[int]]:
    """Columns of scalars, vectors and tensors in features laid side by side, whose e3nn irreps are given."""
    kinds = {"0e": "scalar", "1o": "vector", "2e": "tensor"}
    found: dict[str, list[int]] = {"scalar": [], "vector": [], "tensor": []}
    start = 0
    for irreps in layers:
        for multiplicity, irrep in irreps:
            stop = start + multiplicity * irrep.dim
            if str(irrep) in kinds:
                found[kinds[str(irrep)]].extend(range(start, stop))
            start = stop
    return found


def traceless_from_l2(components: Float[Tensor, "atoms channels 5"]) -> Float[Tensor, "atoms channels 3 3"]:
    """Symmetric traceless matrices of l = 2 components in the order and axes of e3nn; lengths stay what they are.

    The five are xz, xy, (2y² − x² − z²)/(2√3), yz, (z² − x²)/2 of a vector's components, times √(15/4π) for spherical
    harmonics of unit vectors. Those of l = 1 are x, y, z themselves.
    """
    h, s, t = 0.5**0.5, 6.0**-0.5, (2.0 / 3.0) ** 0.5
    basis = components.new_tensor(
        [
            [[0, 0, h], [0, 0, 0], [h, 0, 0]],
            [[0, h, 0], [h, 0, 0], [0, 0, 0]],
            [[-s, 0, 0], [0, t, 0], [0, 0, -s]],
            [[0, 0, 0], [0, 0, h], [0, h, 0]],
            [[-h, 0, 0], [0, 0, 0], [0, 0, h]],
        ]
    )
    return torch.einsum("acm,mxy->acxy", components, basis)
