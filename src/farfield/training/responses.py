"""What a potential says of dipoles, charges, polarizabilities and Born charges while it is trained on them.

Labels are physical, a potential's multipoles latent: the gauge sign, and in bulk √ε_e, stand between them just as in
`farfield.Model`. Energies do not tell the sign; labels do, so that it is fixed as long as they are trained on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.datasets.dataset import Sample
from farfield.observables.born import born_charges
from farfield.observables.moments import dipole_moment, physical, scale_of_atoms
from farfield.observables.outputs import ScaledPotential, screened_epsilon
from farfield.potentials.augmented import AugmentedPotential
from farfield.potentials.long_range import LongRangeResult
from farfield.units import COULOMB_CONSTANT

#: Labels that tell the sign of the charges; a polarizability does not.
SIGNED = ("dipole", "charges", "born_charges")


def counts_in(part: str, batch: AtomicBatch, epsilon_infinity: float | None) -> bool:
    """Whether a label of one system means something the loss can compare with (see `RULES`)."""
    periodic = batch.pbc
    if part == "stress":
        return bool(periodic.all())
    if part in ("dipole", "polarizability"):
        return not bool(periodic.any())
    if part in ("charges", "born_charges"):
        return not bool(periodic.any()) or (bool(periodic.all()) and epsilon_infinity is not None)
    return True


#: Where labels count, for messages.
RULES = {
    "total_charge": "data.total_charge names the key of the frames' info that gives it",
    "interaction_energy": "it needs fragments, see farfield.datasets.fragments",
    "interaction_forces": "they need fragments, see farfield.datasets.fragments",
    "stress": "a stress counts where all three axes are periodic",
    "dipole": "a dipole counts in systems that are open along all axes: in periodic ones it is known up to quanta only",
    "polarizability": "a polarizability counts in systems that are open along all axes",
    "charges": "charges count in systems that are open along all axes, and where all three are periodic with "
    "model.epsilon_infinity given",
    "born_charges": "Born charges count in systems that are open along all axes, and where all three are periodic with "
    "model.epsilon_infinity given",
}


def training_scale(
    potential: AugmentedPotential, batch: AtomicBatch, sign: int, epsilon_infinity: float | None
) -> Float[Tensor, " systems"]:
    """Physical over latent multipoles, shape (systems,), float64, without a graph: gauge sign times √ε_e.

    ε_e is 1 but in 3D-periodic systems where ε∞ is known. A model's own polarizability, which is part of ε_e, changes
    slowly in training: no gradient flows through it.
    """
    epsilon = torch.ones(batch.n_systems, dtype=torch.float64, device=batch.pbc.device)
    if epsilon_infinity is not None:
        bulk = batch.pbc.all(dim=1)
        epsilon = torch.where(bulk, float(epsilon_infinity), epsilon)
        far = potential.long_range
        if far is not None and far.has_response and bool(bulk.any()):
            epsilon = screened_epsilon(potential, batch, epsilon, sign)
    return sign * epsilon.sqrt()


def responses_of(
    potential: AugmentedPotential,
    sample: Sample,
    far: LongRangeResult,
    parts: Sequence[str],
    *,
    sign: int,
    epsilon_infinity: float | None,
    create_graph: bool,
) -> dict[str, Tensor]:
    """Compute physical predictions for labels, with their graph in the parameters.

    Parameters
    ----------
    potential
        A potential with a long range.
    sample
        Systems with neighbours, and their labels: what costs much and has no label in the batch is not computed, but
        zero.
    far
        What the long range found for these systems; dipoles, charges and polarizabilities follow from it.
    parts
        Which ones, out of `farfield.training.config.LONG_RANGE_PARTS`.
    sign, epsilon_infinity
        Gauge sign, and ε∞ of bulk where it is known.
    create_graph
        Keep the graph of Born charges, to train on them.

    Returns
    -------
    dict
        ``total_charge`` (e) before any constraint, shape (systems,); ``dipole`` (e·Å, about the origin of the
        coordinates, which matters for charged systems only), shape (systems, 3); ``charges`` (e), permanent ones as in
        `farfield.Model`, shape (atoms,); ``polarizability`` (Å³), shape (systems, 3, 3); ``born_charges`` (e), shape
        (atoms, 3, 3).

    Raises
    ------
    ValueError
        If the potential has no long range.
    """
    module, batch = potential.long_range, sample.batch
    if module is None:
        raise ValueError("`potential` has no long-range part and so no charges: build it with a `LongRange`")
    # Only these are compared in bulk; χ, which ε_e needs, is looked at for no other.
    screened = "charges" in parts or "born_charges" in parts
    scale = training_scale(potential, batch, sign, epsilon_infinity if screened else None)
    values: dict[str, Tensor] = {}
    if "total_charge" in parts:
        label = sample.labels["total_charge"]
        # Latent and physical charges differ by √ε∞ in bulk: the latent difference is what a loss of any data can weigh.
        values["total_charge"] = label if far.excess is None else label + far.excess
    if "dipole" in parts:
        values["dipole"] = dipole_moment(batch, physical(batch, module.polarizing(batch, far), scale))
    if "charges" in parts:
        values["charges"] = physical(batch, far.multipoles, scale).charges
    for part in ("polarizability", "born_charges"):
        if part not in parts:
            continue
        label = sample.labels[part]
        if bool(label.isnan().all()):
            values[part] = torch.zeros_like(label)
        elif part == "polarizability":
            factor = COULOMB_CONSTANT * scale_of_atoms(batch, scale).square()
            total = batch.sum_over_atoms(module.answers(batch, far.response) * factor[:, None, None])
            values[part] = 0.5 * (total + total.mT)
        else:
            model = ScaledPotential(potential, sign, scale)
            values[part] = born_charges(model, batch, scale=scale, create_graph=create_graph)
    return values
