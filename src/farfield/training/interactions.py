"""What fragments do to each other by a potential, while it is trained on it."""

from __future__ import annotations

from torch import Tensor

from farfield.datasets.dataset import Sample
from farfield.observables.outputs import in_gauge
from farfield.potentials.augmented import AugmentedPotential, Prediction


def interactions_of(
    potential: AugmentedPotential, sample: Sample, whole: Prediction, *, sign: int = 1, create_graph: bool
) -> dict[str, Tensor]:
    """Subtract from the energies and forces of whole systems those of their fragments, each predicted alone.

    Parameters
    ----------
    potential
        The potential.
    sample
        Systems with neighbours and with the fragments of some of them.
    whole
        Its prediction for the systems, with forces.
    sign
        Gauge sign of the charges, for constraints on the fragments' total charges.
    create_graph
        Keep the graph of the forces, to train on them.

    Returns
    -------
    dict
        ``interaction_energy`` (eV), shape (systems,), float64; ``interaction_forces`` (eV/Å), shape (atoms, 3). Systems
        that have no fragments in the sample, and so no such labels, keep their own energies and forces.

    Raises
    ------
    ValueError
        If ``whole`` has no forces.
    """
    energy, forces, parts = whole.energy, whole.forces, sample.fragments
    if forces is None:
        raise ValueError("`whole` is a prediction without forces: predict the whole systems with forces=True")
    if parts is not None:
        apart = potential.predict(in_gauge(potential, parts.batch, sign), forces=True, create_graph=create_graph)
        assert apart.forces is not None  # noqa: S101 - asked for
        energy = energy.index_add(0, parts.systems, apart.energy, alpha=-1)
        forces = forces.index_add(0, parts.atoms, apart.forces, alpha=-1)
    return {"interaction_energy": energy, "interaction_forces": forces}
