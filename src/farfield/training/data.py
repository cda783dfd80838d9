"""The parts of the data that a configuration asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from farfield.datasets.dataset import Dataset, Sample, load_dataset
from farfield.training.config import ConfigError, SourceConfig, TrainingConfig
from farfield.training.losses import used_labels
from farfield.training.sampler import split_indices


@dataclass(frozen=True, eq=False)
class TrainingData:
    """The parts of the data, with neighbours."""

    train: Dataset
    validation: Dataset | None
    test: Dataset | None

    def parts(self) -> dict[str, Dataset]:
        """Return the parts that there are, by name."""
        every = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in every.items() if part is not None}

    def with_neighbors(self, cutoff: float) -> TrainingData:
        """Return the parts with neighbours within ``cutoff`` (Å)."""

        def found(part: Dataset | None) -> Dataset | None:
            return None if part is None else part.with_neighbors(cutoff)

        return TrainingData(self.train.with_neighbors(cutoff), found(self.validation), found(self.test))


def load_training_data(config: TrainingConfig) -> TrainingData:
    """Read, select and split the data of a configuration, without neighbours.

    Raises
    ------
    FileNotFoundError
        If a set is not here.
    ConfigError
        If a label with a weight in the loss is missing, or a split leaves nothing.
    ValueError
        If a file cannot be read.
    """
    dtype = getattr(torch, config.precision)

    def read(sources: Sequence[SourceConfig], part: str) -> Dataset | None:
        if not sources:
            return None
        data = config.data
        sets = [
            load_dataset(
                source.set,
                columns=data.columns,
                units=data.units,
                conventions=data.conventions,
                dtype=dtype,
                total_charge=data.total_charge,
                select=source.select,
            )
            for source in sources
        ]
        samples = [sample for one in sets for sample in one]
        dataset = Dataset(samples, " + ".join(s.set for s in sources), [entry for one in sets for entry in one.info])
        lacking = [name for name in ("energy", *used_labels(config.loss.stages)) if name not in dataset.labels]
        if lacking:
            raise ConfigError(
                f"data.{part}: the loss needs {lacking}, which not every frame of {dataset.name!r} has; "
                f"labels that all have: {sorted(dataset.labels)}. Map data.columns or set the weight to 0"
            )
        # Labels that nothing is trained on are dropped here: they are neither moved nor seen.
        wanted = ("energy", *used_labels(config.loss.stages))
        kept = [Sample(s.batch, {name: s.labels[name] for name in dict.fromkeys(wanted)}) for s in dataset]
        return Dataset(kept, dataset.name, dataset.info)

    train, validation, test = (
        read(config.data.train, "train"),
        read(config.data.validation, "validation"),
        read(config.data.test, "test"),
    )
    assert train is not None  # noqa: S101 - the configuration refuses an empty list
    if config.data.split is not None:
        first, second = split_indices(len(train), config.data.split)
        train, validation = train.subset(first), train.subset(second)
    return TrainingData(train, validation, test)
