"""Small trained-looking models of the real kind, for the rooms above the potentials."""

from __future__ import annotations

from typing import Any

import torch
from ase.build import bulk, molecule

from farfield.atoms.structures import from_ase
from farfield.card import ModelCard
from farfield.model import Model
from farfield.potentials.augmented import AugmentedPotential
from farfield.potentials.cace import CACE
from farfield.potentials.long_range import LongRange


def small_model(
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    *,
    long_range: bool = True,
    layers: int = 0,
    cutoff: float = 2.7,
    charge_scale: float = 0.1,
    card: dict[str, Any] | None = None,
    **far: Any,
) -> Model:
    """Return a model of H, C, O, Na, Cl with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = CACE(
            [1, 6, 8, 11, 17], cutoff, n_bessel=4, n_radial=2, n_embedding=2, max_l=2, max_nu=2, n_layers=layers,
            n_features=6, n_hidden=(8,), n_vectors=2, n_message_channels=2,
        )  # fmt: skip
        # softer than a fresh model is: a law about response needs some
        far = {"dipoles": True, "n_hidden": (8,), "charge_scale": charge_scale, "softness_scale": 0.01, **far}
        head = LongRange(backbone.n_scalars, backbone.n_vectors, **far) if long_range else None
        references = {1: -0.5, 6: -1.25, 8: -2.75, 11: -0.3, 17: -1.7}  # small: differences keep their digits
        potential = AugmentedPotential(backbone, head, reference_energies=references).to(dtype)
        # Without its starting scales the random model has forces of 10⁴ eV/Å.
        usual = from_ase(
            [
                molecule("CH3OH"),
                molecule("CO2"),
                molecule("H2"),
                molecule("H2O"),
                bulk("NaCl", "rocksalt", 4.4, cubic=True),
            ],
            dtype=dtype,
        )
        potential.calibrate(potential.add_neighbors(usual), 1.0)
    return Model(potential, ModelCard(name="small", **(card or {})))
