"""What a potential says of dipoles, charges, polarizabilities and Born charges while it is trained on them.

Labels are physical, a potential's multipoles latent: the gauge sign, and in bulk √ε_e, stand between them just as in
`farfield.Model`. Energies do not tell the sign; labels do, so that it is fixed as long as they are trained on.

Polarizabilities of bulk are labels where ε∞ is ``"explicit"``, made by the model's own response alone. The label is
that of all electrons, V (ε − 1)/4π with the frame's own ε; what a model reports is its own part, ε_e V (ε_m − 1)/4π
with ε_m that of its response. Both are the same thing at ε_e = 1 only, where equality means ε_m = ε, in every frame and
direction. With a number for ε∞, ε_e = ε∞/ε_m, and equality (of traces) means ε_m = ε∞/(ε∞ + 1 − ε): right where ε = ε∞,
but what frames differ by comes out ε∞ times too large, and nothing solves it from ε = ε∞ + 1 on. Whether gradients flow
through ε_e makes no difference: they change the way to this point, not the point.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.card import EpsilonInfinity
from farfield.datasets.dataset import Sample
from farfield.observables.born import born_charges
from farfield.observables.moments import dipole_moment, physical
from farfield.observables.outputs import ScaledPotential, screened_epsilon
from farfield.potentials.augmented import AugmentedPotential
from farfield.potentials.long_range import LongRangeResult
from farfield.training.config import RESPONSE_PARTS
from farfield.units import COULOMB_CONSTANT

#: Labels that tell the sign of the charges; a polarizability does not.
SIGNED = ("dipole", "charges", "born_charges")


def counts_in(part: str, batch: AtomicBatch, epsilon_infinity: EpsilonInfinity | None) -> bool:
    """Whether a label of one system means something the loss can compare with (see `RULES`)."""
    bulk, opened = bool(batch.pbc.all()), not bool(batch.pbc.any())
    if part == "stress":
        return bulk
    if part not in RESPONSE_PARTS or opened:
        return True
    if part == "dipole":
        return False
    return bulk and (epsilon_infinity == "explicit" if part == "polarizability" else epsilon_infinity is not None)


#: Where labels count, for messages.
RULES = {
    "total_charge": "data.total_charge gives it, or names the key of the frames' info that does",
    "interaction_energy": "it needs fragments, see farfield.datasets.fragments",
    "interaction_forces": "they need fragments, see farfield.datasets.fragments",
    "stress": "a stress counts where all three axes are periodic",
    "dipole": "a dipole counts in systems that are open along all axes: in periodic ones it is known up to quanta only",
    "polarizability": "a polarizability counts in systems that are open along all axes, and where all three are "
    "periodic with model.epsilon_infinity: explicit, not a number, as the label says itself what ε∞ is",
    "charges": "charges count in systems that are open along all axes, and where all three are periodic with "
    "model.epsilon_infinity given",
    "born_charges": "Born charges count in systems that are open along all axes, and where all three are periodic with "
    "model.epsilon_infinity given",
}


def training_scale(
    potential: AugmentedPotential, batch: AtomicBatch, sign: int, epsilon_infinity: EpsilonInfinity | None
) -> Float[Tensor, " systems"]:
    """Physical over latent multipoles, shape (systems,), float64, without a graph: gauge sign times √ε_e.

    ε_e is 1 but in 3D-periodic systems where a number is known for ε∞. A model's own polarizability, which is part of
    ε_e, changes slowly in training: no gradient flows through it.
    """
    epsilon = torch.ones(batch.n_systems, dtype=torch.float64, device=batch.pbc.device)
    if epsilon_infinity is not None and not isinstance(epsilon_infinity, str):
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
    epsilon_infinity: EpsilonInfinity | None,
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
    # Of what is compared in bulk only these have an ε_e; χ, which it needs, is looked at for no other.
    screened = any(
        part in parts and not bool(sample.labels[part].isnan().all()) for part in ("charges", "born_charges")
    )
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
            assert far.response is not None  # noqa: S101 - the configuration refuses such labels without response
            # Physical as it is: such labels count only where ε_e = 1.
            values[part] = COULOMB_CONSTANT * module.total_polarizability(batch, far.response).to(label)
        else:
            model = ScaledPotential(potential, sign, scale)
            values[part] = born_charges(model, batch, scale=scale, create_graph=create_graph)
    return values
