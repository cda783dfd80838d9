"""From a trained potential to a model file: the sign of its charges, and its card."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import farfield
from farfield.atoms.batch import AtomicBatch
from farfield.card import ModelCard
from farfield.datasets.registry import DATASETS
from farfield.gauge import find_gauge
from farfield.model import Model
from farfield.potentials.augmented import AugmentedPotential
from farfield.training.config import SourceConfig, TrainingConfig
from farfield.training.data import TrainingData, is_known
from farfield.training.initial import describe
from farfield.training.losses import used_responses
from farfield.training.reporting import UNITS
from farfield.training.responses import SIGNED


def _sources(sources: Sequence[SourceConfig]) -> tuple[str, str, str]:
    """Return what the card says of the data: description, licence, level of theory."""
    said, licences, levels = [], [], []
    for source in sources:
        entry = DATASETS.get(source.set)
        choice = f" {source.select}" if source.select else ""
        said.append(f"{source.set}{choice}" + (f" ({entry.content}; {entry.source})" if entry else ""))
        if entry:
            licences.append(entry.licence)
            levels.append(entry.level)
    return "; ".join(said), "; ".join(dict.fromkeys(licences)), "; ".join(dict.fromkeys(levels))


def common_charge(batches: Iterable[AtomicBatch]) -> float | None:
    """Total charge (e) that all systems have; None where they differ or one is not known."""
    charges: set[float] = set()
    for batch in batches:
        if batch.total_charge is None:
            return None
        charges.update(batch.total_charge.tolist())
    return charges.pop() if len(charges) == 1 else None


def make_card(
    potential: AugmentedPotential,
    config: TrainingConfig,
    data: TrainingData,
    metrics: dict[str, dict[str, float]],
    epoch: int,
    gauge_sign: int = 1,
) -> ModelCard:
    """Write the card of a trained potential.

    Parameters
    ----------
    potential
        The trained potential.
    config, data
        What it was trained by and on.
    metrics
        Its errors by part of the data, in the units of `farfield.training.reporting.UNITS`.
    epoch
        The epoch whose weights it has (from 0).
    gauge_sign
        Sign of the charges under which it was trained; it counts where labels told it.
    """
    # In parts, so that a long list of frames needs no more memory than one of its parts.
    telling = [part for part in used_responses(config.loss.stages) if part in SIGNED]
    if telling:
        sign, gauge = gauge_sign, f"fixed by the labels trained on: {', '.join(telling)}"
    else:
        sign, gauge = find_gauge(potential, (sample.batch for sample in data.train.batches(16)))
    training_data, licence, level = _sources(config.data.train)
    versions = {"python": sys.version.split()[0], "farfield": farfield.__version__}
    for package in ("torch", "lightning", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # a package that was put on the path without its metadata
            continue
    with_units = {
        part: {f"{key} ({UNITS[key.rpartition('_')[0]]})": round(value, 4) for key, value in errors.items()}
        for part, errors in metrics.items()
    }
    validation = f", {len(data.validation)} for validation" if data.validation is not None else ""
    before = f"; started from {describe(config.initial)}" if config.initial is not None else ""
    return ModelCard(
        name=config.name,
        description=config.description,
        training_data=f"{training_data}: {len(data.train)} frames for training{validation}{before}",
        licence=config.licence or licence,
        level_of_theory=level,
        elements=tuple(data.train.elements),
        gauge_sign=sign,
        gauge=gauge,
        epsilon_infinity=config.model.epsilon_infinity,
        total_charge=common_charge(sample.batch for sample in data.train if is_known(sample, "energy")),
        metrics=with_units,
        command=f"farfield train {config.name}.yaml",
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        versions=versions,
        notes=f"weights of epoch {epoch + 1}, seed {config.seed}, {config.precision}",
    )


def save_model(
    path: Path,
    potential: AugmentedPotential,
    config: TrainingConfig,
    data: TrainingData,
    metrics: dict[str, dict[str, float]],
    epoch: int,
    gauge_sign: int = 1,
) -> None:
    """Write the model file of a trained potential (see `make_card`)."""
    Model(potential, make_card(potential, config, data, metrics, epoch, gauge_sign)).save(path)
