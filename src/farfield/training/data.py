"""The parts of the data that a configuration asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from farfield.card import EpsilonInfinity
from farfield.datasets.dataset import IN_FLOAT64, LABEL_SHAPES, Dataset, Sample, load_dataset
from farfield.training.config import INTERACTION_PARTS, ConfigError, SourceConfig, TrainingConfig
from farfield.training.losses import compares_fragments, used_labels
from farfield.training.responses import RULES, counts_in
from farfield.training.sampler import split_indices

#: Shapes of all labels of a loss; the total charge, one number, belongs to the batch.
_SHAPES = {**LABEL_SHAPES, "total_charge": ()}


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

    def gaps(self) -> list[str]:
        """Say which labels some frames lack, one line for each part of the data and label."""
        lines = []
        for part, dataset in self.parts().items():
            for name in dataset.labels:
                lacking = sum(not is_known(sample, name) for sample in dataset)
                if lacking:
                    rule = f" ({RULES[name]})" if name in RULES and name not in ("stress", *INTERACTION_PARTS) else ""
                    lines.append(
                        f"{part}: {lacking} of {len(dataset)} frames have no {name}, and no such part in the loss{rule}"
                    )
        return sorted(lines)


def _with_labels(sample: Sample, names: Sequence[str], epsilon_infinity: EpsilonInfinity | None) -> Sample:
    """Return a sample of one system with just these labels, NaN where it lacks one."""
    known, labels = dict(sample.labels), {}
    if sample.batch.total_charge is not None:
        known["total_charge"] = sample.batch.total_charge
    for name in names:
        if name in known and counts_in(name, sample.batch, epsilon_infinity):
            labels[name] = known[name]
        else:
            shape = _SHAPES[name]
            shape = (sample.batch.n_atoms, *shape[1:]) if shape[:1] == (-1,) else (1, *shape)
            dtype = torch.float64 if name in IN_FLOAT64 else sample.batch.positions.dtype
            labels[name] = torch.full(shape, torch.nan, dtype=dtype)
    return Sample(sample.batch, labels, sample.fragments)


def is_known(sample: Sample, name: str) -> bool:
    """Whether a sample has a label, and all of it."""
    return not bool(torch.isnan(sample.labels[name]).any())


def load_training_data(config: TrainingConfig) -> TrainingData:
    """Read, select and split the data of a configuration, without neighbours.

    Labels that a frame lacks are NaN, which the loss leaves out (`farfield.training.losses.errors_of`). So are
    those that mean nothing in a system, such as the stress of an open one (`farfield.training.responses.counts_in`).

    Raises
    ------
    FileNotFoundError
        If a set is not here.
    ConfigError
        If no frame has a label with a weight in the loss, or a split leaves nothing.
    ValueError
        If a file cannot be read.
    """
    dtype = getattr(torch, config.precision)
    used = used_labels(config.loss.stages)

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
                fragments=compares_fragments(config.loss.stages),
                select=source.select,
            )
            for source in sources
        ]
        samples = [sample for one in sets for sample in one]
        dataset = Dataset(samples, " + ".join(s.set for s in sources), [entry for one in sets for entry in one.info])
        # Labels that nothing is trained on are dropped here: they are neither moved nor seen.
        wanted = list(dict.fromkeys(("energy", *used)))
        epsilon = config.model.epsilon_infinity
        complete = Dataset([_with_labels(sample, wanted, epsilon) for sample in dataset], dataset.name, dataset.info)
        # Open systems have no stress, and most sets no fragments; to train on these some frame must have them, to
        # validate none has to.
        able = {
            name: part == "train"
            or (name not in INTERACTION_PARTS and any(counts_in(name, sample.batch, epsilon) for sample in dataset))
            for name in used
        }
        lacking = [name for name in used if able[name] and not any(is_known(sample, name) for sample in complete)]
        if lacking:
            found = sorted({name for sample in dataset for name in sample.labels})
            rules = "; ".join(RULES[name] for name in lacking if name in RULES)
            raise ConfigError(
                f"data.{part}: the loss needs {lacking}, which no frame of {dataset.name!r} has; labels found there: "
                f"{found}. Map data.columns or set the weight to 0" + (f" ({rules})" if rules else "")
            )
        return complete

    train, validation, test = (
        read(config.data.train, "train"),
        read(config.data.validation, "validation"),
        read(config.data.test, "test"),
    )
    assert train is not None  # noqa: S101 - the configuration refuses an empty list
    if config.data.split is not None:
        # Frames without an energy, there for their total charges perhaps, validate little: all of them are trained on.
        able = [index for index, sample in enumerate(train) if is_known(sample, "energy")]
        able = able or list(range(len(train)))
        chosen = {able[index] for index in split_indices(len(able), config.data.split)[1]}
        train, validation = (
            train.subset([index for index in range(len(train)) if index not in chosen]),
            train.subset(sorted(chosen)),
        )
    return TrainingData(train, validation, test)
