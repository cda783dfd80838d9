"""The sign of latent charges: energies are even in them, so it is fixed after training."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.atoms.electronegativity import most_electronegative
from farfield.model import Model
from farfield.observables.moments import dipole_moment, with_neighbors


def fix_gauge(
    model: Model,
    batches: AtomicBatch | Iterable[AtomicBatch],
    reference_dipoles: Iterable[Float[Tensor, "systems 3"]] | None = None,
) -> int:
    """Choose the sign that latent multipoles are multiplied by, and write it with its reason into the model's card.

    The first of these that applies: a model whose charges are constrained to non-zero total charges has its sign from
    them; given reference dipoles correlate positively with those of the model; the mean charge of the most
    electronegative element is negative; else the sign stays as it is.

    Parameters
    ----------
    model
        The trained model; its card is replaced.
    batches
        Some representative structures, such as the training set.
    reference_dipoles
        Dipoles (e·Å) of the systems of each batch, where known. Systems with NaN are left out.

    Returns
    -------
    int
        The sign, 1 or -1.

    Raises
    ------
    ValueError
        If there are no structures, or as many lists of dipoles as batches are not given.
    """
    if not model.is_long_range:
        model.card = model.card.replace(gauge_sign=1, gauge="no charges: the model has no long-range part")
        return 1
    listed = [batches] if isinstance(batches, AtomicBatch) else list(batches)
    if not listed:
        raise ValueError("`batches` is empty: give some structures to fix the sign of the charges with")
    if reference_dipoles is not None:
        sign, reason = _by_dipoles(model, listed, list(reference_dipoles))
    elif _is_bound(model, listed):
        sign, reason = 1, "fixed by the constraint on the total charge during training"
    else:
        sign, reason = _by_element(model, listed)
    if sign == 0:
        sign, reason = model.card.gauge_sign, f"not fixed ({reason}): the overall sign of the charges is arbitrary"
    if sign == -1 and _is_bound(model, listed):
        # Turning charges that add up to a given total would contradict it.
        sign, reason = 1, f"fixed by the constraint on the total charge during training, against: {reason}"
    model.card = model.card.replace(gauge_sign=sign, gauge=reason)
    return sign


def _is_bound(model: Model, batches: list[AtomicBatch]) -> bool:
    far = model.potential.long_range
    if far is None or far.total_charge != "constraint":
        return False
    return any(batch.total_charge is not None and bool((batch.total_charge != 0).any()) for batch in batches)


def _by_dipoles(model: Model, batches: list[AtomicBatch], references: list[Tensor]) -> tuple[int, str]:
    if len(references) != len(batches):
        raise ValueError(
            f"`reference_dipoles` has {len(references)} entries but must have {len(batches)}: one for each batch"
        )
    product = 0.0
    for batch, reference in zip(batches, references, strict=True):
        ready = _ready(model, batch)
        with torch.no_grad():
            ours = dipole_moment(ready, model.potential.multipoles(ready), origin="centre")
        product += float((ours * reference.to(ours)).nan_to_num(nan=0.0).sum())
    return _sign(product), "dipoles correlate positively with reference dipoles"


def _by_element(model: Model, batches: list[AtomicBatch]) -> tuple[int, str]:
    numbers = torch.cat([batch.numbers.cpu() for batch in batches])
    element = most_electronegative(numbers.unique().tolist())
    if element is None:
        return 0, "fewer than two elements of known electronegativity"
    charges = []
    for batch in batches:
        ready = _ready(model, batch)
        with torch.no_grad():
            charges.append(model.potential.multipoles(ready).charges.double().cpu())
    latent = torch.cat(charges)
    from ase.data import chemical_symbols

    return _sign(
        -float(latent[numbers == element].mean())
    ), f"the most electronegative element, {chemical_symbols[element]}, is negative on average"


def _ready(model: Model, batch: AtomicBatch) -> AtomicBatch:
    return with_neighbors(model.potential, batch.to(device=model.device, dtype=model.dtype))


def _sign(value: float) -> int:
    return int(value > 0) - int(value < 0)
