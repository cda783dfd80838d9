"""What fragments do to each other by a potential, while it is trained on it."""

from __future__ import annotations

from torch import Tensor

from farfield.datasets.dataset import Sample
from farfield.observables.outputs import in_gauge
from farfield.potentials.augmented import AugmentedPotential, Prediction


def interactions_of(
    potential: AugmentedPotential, sample: Sample, whole: Prediction, *, sign: int, create_graph: bool
) -> dict[str, Tensor]:
    """Subtract from the energies and forces of whole systems those of their fragments, each predicted alone.

    Parameters
    ----------
    potential
        The potential.
    sample
        Systems with neighbours and with the fragments of some of them.
    whole
        Its prediction for the systems.
    sign
        Gauge sign of the charges, for constraints on the fragments' total charges.
    create_graph
        Keep the graph of the forces, to train on them.

    Returns
    -------
    dict
        ``interaction_energy`` (eV), shape (systems,), float64; and ``interaction_forces`` (eV/Å), shape (atoms, 3),
        where ``whole`` has forces. Systems that have no fragments in the sample, and so no such labels, keep their own
        energies and forces.
    """
    energy, forces, parts = whole.energy, whole.forces, sample.fragments
    if parts is not None:
        ready = in_gauge(potential, parts.batch, sign)
        apart = potential.predict(ready, forces=forces is not None, create_graph=create_graph)
        energy = parts.subtracted(energy, apart.energy, per_atom=False)
        if forces is not None and apart.forces is not None:
            forces = parts.subtracted(forces, apart.forces, per_atom=True)
    found = {"interaction_energy": energy}
    return found if forces is None else {**found, "interaction_forces": forces}
