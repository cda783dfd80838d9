"""From a configuration and data to a potential that is ready to be trained."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from farfield.atoms.batch import AtomicBatch
from farfield.datasets.dataset import Dataset, collate
from farfield.hosts.registry import adapter
from farfield.potentials.augmented import AugmentedPotential, backbone_class
from farfield.potentials.long_range import LongRange
from farfield.training.config import ConfigError, ModelConfig
from farfield.training.reading import did_you_mean

#: Systems per batch where a model is applied to the data before the training.
FRAMES_AT_ONCE = 16

#: How many training frames set the starting scales of a model.
CALIBRATION_FRAMES = 64


def fit_reference_energies(dataset: Dataset, explained: Sequence[float] | None = None) -> dict[int, float]:
    """Energy of each element by least squares of total energies on element counts (eV).

    Where the counts leave a combination undetermined, such as in a set of one composition, the solution of minimum norm
    is taken.

    Parameters
    ----------
    dataset
        Systems with energies: the training part only. Those whose energy is NaN, not known, are left out.
    explained
        Energy of each system that a model accounts for already, to be left out of the fit (eV).

    Returns
    -------
    dict
        Energy by atomic number, for the elements that occur.
    """
    import numpy as np

    elements = dataset.elements
    counts = np.zeros((len(dataset), len(elements)))
    energies = np.zeros(len(dataset))
    for row, sample in enumerate(dataset):
        numbers = sample.batch.numbers.numpy()
        counts[row] = [(numbers == z).sum() for z in elements]
        energies[row] = float(sample.labels["energy"].sum()) - (0.0 if explained is None else explained[row])
    # Energies are far larger than what differs between systems: float64, and the pseudo-inverse for rank deficiency.
    known = ~np.isnan(energies)
    solution, *_ = np.linalg.lstsq(counts[known], energies[known], rcond=None)
    return {z: float(value) for z, value in zip(elements, solution, strict=True)}


def _check_arguments(cls: Callable[..., Any], given: dict[str, Any], where: str) -> None:
    parameters = inspect.signature(cls).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for key in given:
        if key not in parameters:
            hint = did_you_mean(key, parameters)
            raise ConfigError(f"{where}.{key}: unknown key.{hint} Allowed here: {', '.join(sorted(parameters))}")


def _construct(cls: Callable[..., Any], arguments: dict[str, Any], where: str) -> Any:
    _check_arguments(cls, arguments, where)
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error


def backbone_of(config: ModelConfig, elements: list[int]) -> torch.nn.Module:
    """Build the short-range backbone; ``elements`` are those of the data, where the configuration names none.

    Raises
    ------
    ConfigError
        If the kind or host is unknown or not installed, an argument is not one of the backbone's, a checkpoint cannot
        be used, or the data have elements that the backbone lacks.
    """
    arguments = dict(config.backbone)
    key = "host" if "host" in arguments else "kind"
    name = arguments.pop(key)
    try:
        cls = adapter(name) if key == "host" else backbone_class(name)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"model.backbone.{key}: {error}") from error
    if "checkpoint" in arguments:
        path = arguments.pop("checkpoint")
        _check_arguments(cls.from_checkpoint, arguments, "model.backbone")
        try:
            backbone = cls.from_checkpoint(path, **arguments)
        except (TypeError, ValueError, FileNotFoundError) as error:
            raise ConfigError(f"model.backbone.checkpoint: {error}") from error
        _check_elements(backbone.elements, elements, "checkpoint")
        return backbone
    if "elements" in inspect.signature(cls).parameters:
        chosen = arguments.setdefault("elements", elements)
        try:
            chosen = [_number_of(item) for item in chosen]
        except (TypeError, KeyError) as error:
            raise ConfigError(f"model.backbone.elements: {arguments['elements']!r} is no list of elements") from error
        _check_elements(chosen, elements, "elements")
        arguments["elements"] = chosen
    return _construct(cls, arguments, "model.backbone")


def _check_elements(known: Sequence[int], needed: Sequence[int], key: str) -> None:
    lacking = sorted(set(needed) - set(known))
    if lacking:
        raise ConfigError(f"model.backbone.{key}: {list(known)} lacks elements of the data, atomic numbers {lacking}")


def _number_of(element: int | str) -> int:
    from ase.data import atomic_numbers

    return atomic_numbers[element] if isinstance(element, str) else int(element)


def reference_energies_of(config: ModelConfig, train: Dataset, backbone: torch.nn.Module) -> dict[int, float]:
    """Return reference energies as the configuration wants them (eV), by atomic number."""
    if config.reference_energies == "none":
        return {}
    if config.reference_energies == "host":
        return dict(backbone.reference_energies)  # type: ignore[arg-type]
    if config.reference_energies == "least-squares":
        return fit_reference_energies(train)
    try:
        return {_number_of(symbol): value for symbol, value in config.reference_energies.items()}
    except KeyError as error:
        raise ConfigError(f"model.reference_energies: {error.args[0]!r} is no element symbol") from error


def refit_reference_energies(potential: AugmentedPotential, config: ModelConfig, train: Dataset) -> None:
    """Fit reference energies of ``least-squares`` to what the model leaves of training frames with neighbours."""
    if config.reference_energies != "least-squares":
        return
    potential.set_reference_energies({})
    energies: list[float] = []
    with torch.no_grad():
        for sample in train.batches(FRAMES_AT_ONCE):
            energies.extend(potential(sample.batch).energy.tolist())
    potential.set_reference_energies(fit_reference_energies(train, energies))


def build_potential(config: ModelConfig, train: Dataset, dtype: torch.dtype = torch.float32) -> AugmentedPotential:
    """Build the potential of a configuration, with fresh weights, for a training set.

    Parameters
    ----------
    config
        Model section of the configuration.
    train
        Training frames: they give the elements, the reference energies and the starting scales. Neighbours are not
        needed.
    dtype
        Floating-point type of the weights.

    Raises
    ------
    ConfigError
        If an argument is unknown or refused; the message names the key.
    """
    backbone = backbone_of(config, train.elements)
    long_range = None
    if config.long_range is not None:
        arguments = dict(config.long_range)
        for own in ("scalars", "vectors", "tensors"):
            if own in arguments:
                raise ConfigError(f"model.long_range.{own}: follows from the backbone, leave it out")
        widths = {"scalars": backbone.n_scalars, "vectors": backbone.n_vectors, "tensors": backbone.n_tensors}
        if config.epsilon_infinity is not None and not isinstance(config.epsilon_infinity, str):
            arguments.setdefault("epsilon_infinity", config.epsilon_infinity)
        long_range = _construct(LongRange, {**widths, **arguments}, "model.long_range")
    return AugmentedPotential(
        backbone,
        long_range,
        reference_energies=reference_energies_of(config, train, backbone),
        zbl=config.zbl,
    ).to(dtype)


def calibrate(potential: AugmentedPotential, train: Dataset, config: ModelConfig) -> None:
    """Set the starting scales and reference energies of the potential from training frames with neighbours.

    A short range from a checkpoint has energies already; nominal charges bring that of an ionic crystal with them,
    some ten eV per atom. ``least-squares`` fits what these leave of the labels.
    """
    step = max(1, len(train) // CALIBRATION_FRAMES)
    sample = collate([train[i] for i in range(0, len(train), step)][:CALIBRATION_FRAMES])
    # Labels that are NaN are not known.
    forces = sample.labels.get("forces", torch.full((), torch.nan))
    scale = 1.0 if forces.isnan().all() else float(forces.double().square().nanmean().sqrt())
    batch: AtomicBatch = sample.batch
    potential.calibrate(batch, max(scale, 1e-3))
    if "checkpoint" in config.backbone or (config.long_range or {}).get("nominal_charges"):
        refit_reference_energies(potential, config, train)
