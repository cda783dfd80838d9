"""Small trained-looking models of the real kind, for the rooms above the potentials."""

from __future__ import annotations

from typing import Any

import torch

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
    cutoff: float = 3.0,
    charge_scale: float = 1.0,
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
        far = {"dipoles": True, "n_hidden": (8,), "charge_scale": charge_scale, **far}
        head = LongRange(backbone.n_scalars, backbone.n_vectors, **far) if long_range else None
        references = {1: -13.587, 6: -1029.41, 8: -2042.03, 11: -4412.9, 17: -12516.4}
        potential = AugmentedPotential(backbone, head, reference_energies=references).to(dtype)
    return Model(potential, ModelCard(name="small", **(card or {})))
