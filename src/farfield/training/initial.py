"""Start a training from the weights of a trained model: fine-tuning, and pre-training on labels that are cheap."""

from __future__ import annotations

from typing import Any

import torch

from farfield.datasets.dataset import Dataset
from farfield.model import load
from farfield.potentials.augmented import AugmentedPotential
from farfield.training.build import FRAMES_AT_ONCE, refit_reference_energies
from farfield.training.config import ConfigError, ModelConfig

#: Settings of the long range that hold no weights: they may change.
_FREE = frozenset({"accuracy", "epsilon_infinity"})

#: Heads that a potential may have and the old model not, and what only concerns response, all of it or of one head.
_HEADS = ("dipoles", "quadrupoles", "induced_charges", "induced_dipoles")
_RESPONSE = frozenset({"response", "conserve_charge", "field_on_charges", "bounded_response"})
_OF_HEADS = {
    "induced_charges": frozenset({"softness_scale"}),
    "induced_dipoles": frozenset({"polarizability_scale", "anisotropic", "free_atom_polarizabilities"}),
}


def start_from(
    potential: AugmentedPotential, name: str, config: ModelConfig, train: Dataset, *, balanced: bool = False
) -> int:
    """Give a potential the weights of a trained model, and reference energies that suit its training frames.

    The backbones must be alike. A long range of the trained model is taken over where the potential has an equal one;
    it is left out where the potential has none; where only the potential has one it keeps its fresh weights, and so do
    heads that only the potential has (dipoles, quadrupoles, induced charges and dipoles), with the vectors and tensors
    that these make from bonds. With another ``charge_scale`` the multipoles stay the same and are learned at another
    rate. Reference energies of ``least-squares`` are fitted anew to what the old model leaves of the new labels, since
    levels of theory differ in these above all.

    Parameters
    ----------
    potential
        As `farfield.training.build.build_potential` makes it.
    name
        Path or shipped name of the trained model.
    config
        Model section of the configuration.
    train
        Training frames, with neighbours.
    balanced
        Take out of the charges what they have in common and a constraint on the total charge hides, so that a loss on
        the total charge starts small and need not find it out by way of everything else.

    Returns
    -------
    int
        Sign of the charges, physical over latent: that of the trained model where its long range is taken over, else
        1.

    Raises
    ------
    ConfigError
        If there is no such model, or it differs from what the configuration describes; the message names the keys.
    """
    try:
        model = load(name, dtype=potential.dtype)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"initial: {error}") from error
    old = model.potential
    parts = ["backbone"]
    if potential.long_range is not None and old.long_range is not None:
        parts.append("long_range")
        old.long_range.rescale(potential.long_range.charges.scale)
    mine, theirs = potential.config(), old.config()
    for part in parts:
        keys = (mine[part].keys() | theirs[part].keys()) - _FREE
        if part == "long_range":
            keys -= _added(mine[part], theirs[part])
        differing = sorted(key for key in keys if mine[part].get(key) != theirs[part].get(key))
        if differing:
            raise ConfigError(
                f"initial: {name} has other values of model.{part} {differing}: "
                f"{ {key: theirs[part].get(key) for key in differing} }; set these, or start from another model"
            )
    wanted = tuple(f"{part}." for part in parts)
    weights = {key: value for key, value in old.state_dict().items() if key.startswith(wanted)}
    potential.load_state_dict(weights, strict=False)
    if balanced and "long_range" in parts:
        _balance(potential, train)
    refit_reference_energies(potential, config, train)
    return model.card.gauge_sign if "long_range" in parts else 1


def _added(mine: dict[str, Any], theirs: dict[str, Any]) -> set[str]:
    """Name the settings of heads that come anew: these may differ from those of the old model."""
    added = {head for head in _HEADS if mine[head] and not theirs[head]}
    if added and theirs["bond_cutoff"] is None:
        added |= {"bond_cutoff", "bond_channels"}  # vectors and tensors that only new heads read
    for head, settings in _OF_HEADS.items():
        if not theirs[head]:
            added |= settings
    answers = theirs["induced_charges"] or theirs["induced_dipoles"]
    return added if answers else added | _RESPONSE


def _balance(potential: AugmentedPotential, train: Dataset) -> None:
    """Move all charges alike, until the mean of what a constraint spreads over each atom is zero."""
    far = potential.long_range
    if far is None or far.total_charge != "constraint" or far.learned_weights:
        return
    products = squares = 0.0
    for sample in train.batches(FRAMES_AT_ONCE):
        with torch.no_grad():
            excess = potential(sample.batch).far.excess
        products += float((excess * sample.batch.counts).sum())
        squares += float(sample.batch.counts.square().sum())
    far.charges.move(-products / squares)


def describe(name: str) -> str:
    """Say of a model that a training started from what it was trained on; only its name where it is gone since."""
    try:
        return f"{name} ({load(name).card.training_data})"
    except (FileNotFoundError, ValueError):
        return name
