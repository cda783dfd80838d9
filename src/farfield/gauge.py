"""The sign of latent charges: energies are even in them, so it is fixed after training."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.atoms.chunks import chunks
from farfield.atoms.electronegativity import most_electronegative
from farfield.model import Model
from farfield.observables.born import born_charges
from farfield.observables.moments import dipole_moment, with_neighbors
from farfield.potentials.augmented import AugmentedPotential
from farfield.potentials.long_range import LongRange

#: How many systems' Born charges are looked at, where these decide, and how many atoms at a time.
BORN_SYSTEMS = 64
BORN_ATOMS = 2000


def fix_gauge(
    model: Model,
    batches: AtomicBatch | Iterable[AtomicBatch],
    reference_dipoles: Iterable[Float[Tensor, "systems 3"]] | None = None,
) -> int:
    """Choose the sign that latent multipoles are multiplied by, and write it with its reason into the model's card.

    Parameters
    ----------
    model
        The trained model; its card is replaced. Where nothing fixes the sign, that of the card stays.
    batches, reference_dipoles
        As in `find_gauge`.

    Returns
    -------
    int
        The sign, 1 or -1.

    Raises
    ------
    ValueError
        As `find_gauge`.
    """
    sign, reason = find_gauge(model.potential, batches, reference_dipoles, unfixed=model.card.gauge_sign)
    model.card = model.card.replace(gauge_sign=sign, gauge=reason)
    return sign


def find_gauge(
    potential: AugmentedPotential,
    batches: AtomicBatch | Iterable[AtomicBatch],
    reference_dipoles: Iterable[Float[Tensor, "systems 3"]] | None = None,
    *,
    unfixed: int = 1,
) -> tuple[int, str]:
    """Find the sign that the latent multipoles of a potential are to be multiplied by.

    The first of these that applies: charges that are constrained to non-zero total charges have their sign from them;
    given reference dipoles correlate positively with those of the potential; the mean charge of the most
    electronegative element is negative, or, where atoms have permanent dipoles too, which can take over what charges
    do, its mean isotropic Born charge, that of the permanent multipoles, in some `BORN_SYSTEMS` systems that have it;
    else the sign is arbitrary.

    Parameters
    ----------
    potential
        The trained potential.
    batches
        Some representative structures, such as the training set; they are gone through once.
    reference_dipoles
        Dipoles (e·Å) of the systems of each batch, where known. Systems with NaN are left out.
    unfixed
        The sign to return where nothing fixes it.

    Returns
    -------
    tuple of int and str
        The sign, 1 or -1, and how it was found, for the model's card.

    Raises
    ------
    ValueError
        If there are no structures, or as many lists of dipoles as batches are not given.
    """
    far = potential.long_range
    if far is None:
        return 1, "no charges: the model has no long-range part"
    bound, product, n_batches = False, 0.0, 0
    by_element = torch.zeros(2, 119, dtype=torch.float64)  # charges and atoms, by atomic number
    n_systems = 0  # whose Born charges are counted
    for batch, reference in _with_references(batches, reference_dipoles):
        n_batches += 1
        bound = bound or _is_bound(far, batch)
        here = batch.to(device=next(potential.parameters()).device, dtype=potential.dtype)
        if far.dipoles is None or reference is not None:
            ready = with_neighbors(potential, here)
            with torch.no_grad():
                multipoles = potential.multipoles(ready)
            if reference is not None:
                ours = dipole_moment(ready, multipoles, origin="centre")
                product += float((ours * reference.to(ours)).nan_to_num(nan=0.0).sum())
            _count(by_element, batch, multipoles.charges)
        elif not bound:
            n_systems = _count_born(by_element, n_systems, potential, here)
    if n_batches == 0:
        raise ValueError("`batches` is empty: give some structures to fix the sign of the charges with")
    if bound:
        # Turning charges that add up to a given total would contradict it.
        against = ", against the reference dipoles" if product < 0 else ""
        return 1, f"fixed by the constraint to the total charges of the structures{against}"
    if reference_dipoles is not None:
        evidence, reason = product, "dipoles correlate positively with reference dipoles"
    else:
        evidence, reason = _most_negative(by_element, "charge" if far.dipoles is None else "Born charge")
    if evidence == 0:
        return unfixed, "not fixed: the overall sign of the charges is arbitrary"
    return (1 if evidence > 0 else -1), reason


def _with_references(
    batches: AtomicBatch | Iterable[AtomicBatch], references: Iterable[Tensor] | None
) -> Iterator[tuple[AtomicBatch, Tensor | None]]:
    """Batches, one after the other, each with its reference dipoles where there are any."""
    listed = [batches] if isinstance(batches, AtomicBatch) else batches
    if references is None:
        yield from ((batch, None) for batch in listed)
        return
    listed, given = list(listed), list(references)
    if len(given) != len(listed):
        raise ValueError(
            f"`reference_dipoles` has {len(given)} entries but must have {len(listed)}: one for each batch"
        )
    yield from zip(listed, given, strict=True)


def _is_bound(far: LongRange, batch: AtomicBatch) -> bool:
    if far.total_charge != "constraint" or batch.total_charge is None:
        return False
    return bool((batch.total_charge != 0).any())


def _count(by_element: Float[Tensor, "2 elements"], batch: AtomicBatch, charges: Float[Tensor, " atoms"]) -> None:
    """Add charges and numbers of atoms to the sums over each element."""
    values = torch.stack([charges.double().cpu(), torch.ones(batch.n_atoms, dtype=torch.float64)])
    by_element.index_add_(1, batch.numbers.cpu(), values)


def _count_born(
    by_element: Float[Tensor, "2 elements"], n_systems: int, potential: AugmentedPotential, batch: AtomicBatch
) -> int:
    """Add Born charges, if the batch has the most electronegative element so far; how many systems are then counted."""
    before, here = torch.nonzero(by_element[1]).flatten().tolist(), batch.numbers.unique().tolist()
    element = most_electronegative([*before, *here])
    if element not in before:
        by_element.zero_()
        n_systems = 0
    if element not in here or n_systems >= BORN_SYSTEMS:
        return n_systems
    for part in chunks(batch, BORN_ATOMS):
        _count(by_element, part, _born(potential, with_neighbors(potential, part)))
    return n_systems + batch.n_systems


def _born(potential: AugmentedPotential, batch: AtomicBatch) -> Float[Tensor, " atoms"]:
    """Isotropic Born charges (latent e), along periodic axes by one harmonic: the sign is all that is asked.

    Less the even share of a known total charge that is put into them, so that they turn with the sign of the
    multipoles, in ions, too.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # displacements may be ambiguous here
        born = born_charges(potential, batch, harmonics=1).detach()
    charges = born.diagonal(dim1=1, dim2=2).mean(1)
    if batch.total_charge is not None:
        charges = charges - (batch.total_charge / batch.counts).to(charges)[batch.system]
    return charges


def _most_negative(by_element: Float[Tensor, "2 elements"], what: str) -> tuple[float, str]:
    """How negative the most electronegative element is (0 where there is none), and what to say of it."""
    charges, atoms = by_element
    element = most_electronegative(torch.nonzero(atoms).flatten().tolist())
    if element is None:
        return 0.0, ""
    from ase.data import chemical_symbols

    said = f"the mean {what} of {chemical_symbols[element]}, the most electronegative element, is negative"
    return -float(charges[element]), f"{said} (over {int(atoms[element])} atoms)"
