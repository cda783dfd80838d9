"""A quick linear short-range potential, to learn about data rather than about atoms.

Energy = Σ_pairs Σ_k w_k b_k(r) + Σ_i Σ w D_i, linear in its coefficients, fitted to forces alone by ridge regression.
The pair functions are bumps of compact support on a grid of distances, one set for each pair of elements; the many-body
part has, for each centre, the scalar products of neighbour densities and of their first and second moments

    D_i(s, s', n, l) = Σ_jk g_n(r_ij) g_n(r_ik) (r̂_ij·r̂_ik)^l ,  l = 0, 1, 2

over neighbours j of element s and k of element s' (the two- and three-body terms of a cluster expansion). A shorter
cutoff has a subset of the functions of a longer one, so that errors at several cutoffs can be compared. It is much less
accurate than a neural potential; what counts is how its error changes with the cutoff, and that energies and stress,
which it never saw, must agree with those that its forces imply.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.atoms.neighbors import bond_vectors, find_neighbors

#: Cutoffs (Å) at which the fit is made.
CUTOFFS = (3.0, 4.0, 5.0, 6.0, 8.0)

#: Pair functions: centre and half width (Å) of each bump. Narrow where bonds are.
_PAIR_BUMPS = (
    *((0.5 + 0.25 * k, 0.5) for k in range(9)),
    *((2.0 + 0.5 * k, 1.0) for k in range(11)),
)
#: Radial functions of the many-body part.
_DENSITY_BUMPS = ((1.0, 1.0), (1.5, 1.0), (2.0, 1.0), (3.0, 1.0), (4.0, 1.0))

#: Above this number of many-body coefficients the elements of the neighbours are not told apart in them.
_MOST_COLUMNS = 1200

_RIDGES = (1e-7, 1e-5, 1e-3)


def _bump(distance: Tensor, bumps: Sequence[tuple[float, float]]) -> tuple[Tensor, Tensor]:
    """Values and derivatives of (1 − x²)³, x = (r − centre)/width, zero outside; shape (pairs, bumps)."""
    table = torch.tensor(bumps, dtype=distance.dtype)
    x = (distance[:, None] - table[:, 0]) / table[:, 1]
    inside = (1.0 - x * x).clamp(min=0.0)
    return inside**3, -6.0 * x * inside**2 / table[:, 1]


@dataclass(frozen=True, eq=False)
class Design:
    """Linear maps from the coefficients to what one system shows.

    Attributes
    ----------
    energy
        Shape (columns,).
    forces
        Shape (3·atoms, columns).
    virial
        dE/dstrain, shape (9, columns).
    """

    energy: Float[Tensor, " columns"]
    forces: Float[Tensor, "components columns"]
    virial: Float[Tensor, "9 columns"]


class Basis:
    """The functions of the fit, for some elements.

    Parameters
    ----------
    elements
        Atomic numbers.

    Attributes
    ----------
    reach
        Distance (Å) at which each column ends, shape (columns,).
    """

    def __init__(self, elements: Sequence[int]) -> None:
        self.elements = sorted(elements)
        self.index = torch.full((119,), -1, dtype=torch.int64)
        self.index[self.elements] = torch.arange(len(self.elements))
        count = len(self.elements)
        self.pairs = torch.zeros(count, count, dtype=torch.int64)
        for n, (one, other) in enumerate(itertools.combinations_with_replacement(range(count), 2)):
            self.pairs[one, other] = self.pairs[other, one] = n
        self.n_pairs = count * (count + 1) // 2
        many = count * self.n_pairs * 3 * len(_DENSITY_BUMPS)
        #: number of kinds of neighbours that the many-body part tells apart
        self.kinds = count if many <= _MOST_COLUMNS else 1
        self.kind_pairs = self.pairs if self.kinds == count else torch.zeros(1, 1, dtype=torch.int64)
        self.n_kind_pairs = self.kinds * (self.kinds + 1) // 2
        pair_reach = torch.tensor([centre + width for centre, width in _PAIR_BUMPS])
        density_reach = torch.tensor([centre + width for centre, width in _DENSITY_BUMPS])
        self.reach = torch.cat([pair_reach.repeat(self.n_pairs), density_reach.repeat(count * self.n_kind_pairs * 3)])

    def design(self, batch: AtomicBatch) -> Design:
        """Linear maps of one system (float64); its neighbours are found here, out to the longest reach."""
        batch = find_neighbors(batch.to(dtype=torch.float64), float(self.reach.max()))
        neighbors = batch.neighbors
        if neighbors is None:
            raise ValueError("no neighbours were found")
        vectors = bond_vectors(batch)
        distances = vectors.norm(dim=1)
        kept = distances > 1e-6  # overlapping atoms have no direction
        i, j, vectors, distances = neighbors.i[kept], neighbors.j[kept], vectors[kept], distances[kept]
        parts = (
            self._pair_part(batch, i, j, vectors, distances),
            self._many_body_part(batch, i, j, vectors, distances),
        )
        return Design(
            torch.cat([part.energy for part in parts]),
            torch.cat([part.forces for part in parts], dim=1),
            torch.cat([part.virial for part in parts], dim=1),
        )

    def _pair_part(self, batch: AtomicBatch, i: Tensor, j: Tensor, vectors: Tensor, distances: Tensor) -> Design:
        atoms, functions = batch.n_atoms, len(_PAIR_BUMPS)
        species = self.index[batch.numbers]
        kind = self.pairs[species[i], species[j]]
        value, slope = _bump(distances, _PAIR_BUMPS)
        # The list is full: each pair stands twice, so half of its energy belongs to either entry.
        energy = value.new_zeros(self.n_pairs, functions).index_add_(0, kind, 0.5 * value)
        gradient = slope[:, None, :] * (vectors / distances[:, None])[:, :, None]
        # dE/dr_i of the whole pair is minus the gradient; the other entry gives the other atom's.
        forces = value.new_zeros(atoms * self.n_pairs, 3, functions)
        forces.index_add_(0, i * self.n_pairs + kind, gradient)
        forces = forces.view(atoms, self.n_pairs, 3, functions).transpose(1, 2)
        virial = value.new_zeros(self.n_pairs, 9, functions)
        virial.index_add_(0, kind, (0.5 * vectors[:, :, None, None] * gradient[:, None]).flatten(1, 2))
        return Design(energy.flatten(), forces.flatten(0, 1).flatten(1), virial.transpose(0, 1).flatten(1))

    def _many_body_part(self, batch: AtomicBatch, i: Tensor, j: Tensor, vectors: Tensor, distances: Tensor) -> Design:
        near = distances < max(centre + width for centre, width in _DENSITY_BUMPS)
        i, j, vectors, distances = i[near], j[near], vectors[near], distances[near]
        atoms, functions, kinds = batch.n_atoms, len(_DENSITY_BUMPS), self.kinds
        species = self.index[batch.numbers]
        neighbor = species[j] if kinds > 1 else torch.zeros_like(j)
        unit = vectors / distances[:, None]
        value, slope = _bump(distances, _DENSITY_BUMPS)
        eye = torch.eye(3, dtype=unit.dtype)
        # Projector/r: derivative of the unit vector.
        turn = (eye - unit[:, :, None] * unit[:, None, :]) / distances[:, None, None]
        outer = unit[:, :, None] * unit[:, None, :]
        angular = (torch.ones_like(unit[:, :1]), unit, outer.flatten(1))
        turns = (
            torch.zeros(len(unit), 1, 3, dtype=unit.dtype),
            turn,
            (turn[:, :, None, :] * unit[:, None, :, None] + unit[:, :, None, None] * turn[:, None, :, :]).flatten(1, 2),
        )
        slot = i * kinds + neighbor
        energies, sources = [], []
        for tensor, derivative in zip(angular, turns, strict=True):
            size = tensor.shape[1]
            moment = value.new_zeros(atoms * kinds, functions, size)
            moment.index_add_(0, slot, value[:, :, None] * tensor[:, None, :])
            moment = moment.view(atoms, kinds, functions, size)
            energies.append(torch.einsum("asnm,atnm->astn", moment, moment))
            # gradient of the pair's share: slope·unit·tensor + value·d(tensor)
            seen = moment[i]  # (pairs, kinds, functions, size)
            radial = torch.einsum("pknm,pm->pkn", seen, tensor) * slope[:, None, :]
            turned = torch.einsum("pknm,pmc->pknc", seen, derivative) * value[:, None, :, None]
            sources.append(radial[..., None] * unit[:, None, None, :] + turned)
        # (atoms, kinds, kinds, l·functions), then one column for each centre's element and unordered pair of kinds.
        energy_table = torch.cat(energies, dim=3)
        source = torch.cat(sources, dim=2)  # (pairs, kinds, l·functions, 3)
        width = energy_table.shape[3]
        count = len(self.elements)
        order = self.kind_pairs.flatten()
        by_centre = energy_table.new_zeros(count, kinds * kinds, width)
        by_centre.index_add_(0, species, energy_table.flatten(1, 2))
        energy = energy_table.new_zeros(count, self.n_kind_pairs, width).index_add_(1, order, by_centre)

        # Both factors of D contain the pair if the kinds are equal, one of them (either way round) if not: in the sum
        # over ordered (s, s') the derivative is twice the source at (own kind, other kind) in every case.
        column = self.kind_pairs[neighbor]  # (pairs, kinds): unordered pair of own and other kind
        centre = species[i]
        slots = count * self.n_kind_pairs
        target = centre[:, None] * self.n_kind_pairs + column
        gradient = (2.0 * source).transpose(2, 3)  # (pairs, kinds, 3, width)
        forces = source.new_zeros(atoms * slots, 3, width)
        forces.index_add_(0, (i[:, None] * slots + target).flatten(), gradient.flatten(0, 1))
        forces.index_add_(0, (j[:, None] * slots + target).flatten(), -gradient.flatten(0, 1))
        forces = forces.view(atoms, slots, 3, width).transpose(1, 2)
        virial = source.new_zeros(slots, 9, width)
        strain = (vectors[:, None, :, None, None] * gradient[:, :, None]).flatten(2, 3)
        virial.index_add_(0, target.flatten(), strain.flatten(0, 1))
        return Design(energy.flatten(), forces.flatten(0, 1).flatten(1), virial.transpose(0, 1).flatten(1))


@dataclass(frozen=True, eq=False)
class QuickFit:
    """Result of `quick_fit`.

    Attributes
    ----------
    cutoffs
        Cutoffs (Å).
    rmse
        Force RMSE on the held-out systems at each cutoff (eV/Å), float.
    spread
        RMS of the held-out forces (eV/Å): the error of a model that knows nothing.
    used
        Indices of the systems that were looked at, fitted and held out together.
    n_fitted, n_held_out
        Number of systems in either part.
    energies
        What the fit at the longest cutoff gives for the systems of ``used`` (eV), up to constants of the elements.
    stresses
        Likewise dE/dstrain/volume (eV/Å³), shape (used, 3, 3); NaN where a system is not periodic.
    force_errors
        Norm of the force error of each atom (eV/Å), by position in ``used``.
    """

    cutoffs: tuple[float, ...]
    rmse: tuple[float, ...]
    spread: float
    used: tuple[int, ...]
    n_fitted: int
    n_held_out: int
    energies: Float[np.ndarray, " used"]
    stresses: Float[np.ndarray, "used 3 3"]
    force_errors: list[Float[np.ndarray, " atoms"]]


def quick_fit(
    batches: Sequence[AtomicBatch],
    forces: Sequence[Float[Tensor, "atoms 3"]],
    *,
    seed: int = 0,
    most_atoms: int = 3000,
    most_systems: int = 240,
) -> QuickFit | None:
    """Fit forces with cutoffs of `CUTOFFS` on three quarters of the systems, and test on the rest.

    Parameters
    ----------
    batches, forces
        Systems (one in each batch) and their forces (eV/Å).
    seed
        Of the random choice of systems.
    most_atoms, most_systems
        Bounds on what is looked at, so that it takes seconds.

    Returns
    -------
    QuickFit or None
        None if there are fewer than six systems of two atoms or more.
    """
    order = [int(n) for n in np.random.default_rng(seed).permutation(len(batches)) if batches[n].n_atoms > 1]
    used: list[int] = []
    atoms = 0
    for n in order:
        if len(used) >= most_systems or (len(used) >= 12 and atoms + batches[n].n_atoms > most_atoms):
            break
        used.append(n)
        atoms += batches[n].n_atoms
    if len(used) < 6:
        return None
    held = max(len(used) // 4, 2)
    inner = max((len(used) - held) // 5, 1)  # chooses the ridge
    basis = Basis(sorted({int(z) for n in used for z in batches[n].numbers.unique()}))

    designs: list[Design] = []
    for n in used:
        design = basis.design(batches[n])
        # Designs are large: single precision for what is only multiplied with the final coefficients.
        designs.append(Design(design.energy, design.forces.float(), design.virial))
    targets = [forces[n].double().flatten() for n in used]
    roles = [slice(0, held), slice(held, held + inner), slice(held + inner, len(used))]
    grams = []
    for role in roles:
        gram = torch.zeros(len(basis.reach), len(basis.reach), dtype=torch.float64)
        right = torch.zeros(len(basis.reach), dtype=torch.float64)
        for design, target in zip(designs[role], targets[role], strict=True):
            columns = design.forces.double()
            gram += columns.T @ columns
            right += columns.T @ target
        grams.append((gram, right, sum(float(target @ target) for target in targets[role])))
    counts = [sum(len(target) for target in targets[role]) for role in roles]

    rmse, weights = [], torch.zeros(len(basis.reach), dtype=torch.float64)
    for cutoff in CUTOFFS:
        weights = _solve(grams, basis.reach <= cutoff + 1e-6, counts[1])
        rmse.append(_rmse(grams[0], weights, counts[0]))

    errors = [
        (target - design.forces.double() @ weights).view(-1, 3).norm(dim=1).numpy()
        for design, target in zip(designs, targets, strict=True)
    ]
    return QuickFit(
        cutoffs=CUTOFFS,
        rmse=tuple(rmse),
        spread=float(np.sqrt(grams[0][2] / counts[0])),
        used=tuple(used),
        n_fitted=len(used) - held,
        n_held_out=held,
        energies=np.array([float(design.energy @ weights) for design in designs]),
        stresses=np.stack([_stress(batches[n], design, weights) for n, design in zip(used, designs, strict=True)]),
        force_errors=errors,
    )


Gram = tuple[Tensor, Tensor, float]


def _solve(grams: list[Gram], columns: Tensor, n_inner: int) -> Tensor:
    """Coefficients of some columns, zero elsewhere; the ridge is the one that does best on the inner part."""
    _, inner, outer = grams
    kept = torch.nonzero(columns).flatten()

    def coefficients(parts: Sequence[Gram], ridge: float) -> Tensor:
        gram = sum((part[0] for part in parts), torch.zeros(())).index_select(0, kept).index_select(1, kept)
        right = sum((part[1] for part in parts), torch.zeros(()))[kept]
        scale = gram.diagonal().clamp(min=1e-30).rsqrt()
        scale = torch.where(gram.diagonal() > 1e-12 * gram.diagonal().max(), scale, 0.0)  # columns never met
        matrix = scale[:, None] * gram * scale + ridge * torch.eye(len(kept), dtype=gram.dtype)
        solution = scale * torch.cholesky_solve((scale * right)[:, None], torch.linalg.cholesky(matrix))[:, 0]
        full = torch.zeros(len(columns), dtype=gram.dtype)
        full[kept] = solution
        return full

    best = min(_RIDGES, key=lambda ridge: _rmse(inner, coefficients([outer], ridge), n_inner))
    return coefficients([inner, outer], best)


def _rmse(part: Gram, weights: Tensor, count: int) -> float:
    gram, right, squares = part
    return float(np.sqrt(max(float(weights @ gram @ weights) - 2.0 * float(right @ weights) + squares, 0.0) / count))


def _stress(batch: AtomicBatch, design: Design, weights: Tensor) -> np.ndarray:
    volume = float(torch.linalg.det(batch.cell[0].double()).abs())
    if not bool(batch.pbc.all()) or volume == 0:
        return np.full((3, 3), np.nan)
    return (design.virial @ weights).view(3, 3).numpy() / volume
