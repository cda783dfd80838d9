"""Several models of the same thing: their mean, and their spread as a hint of the error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from farfield.model import Model

if TYPE_CHECKING:
    from farfield.model import Structures


class Ensemble:
    """Models that are computed together.

    Parameters
    ----------
    models
        At least two models, alike in what they compute.

    Raises
    ------
    ValueError
        If there are fewer than two models, or only some of them have a long-range part.
    """

    def __init__(self, models: Sequence[Model]) -> None:
        if len(models) < 2:
            raise ValueError(
                f"`models` has {len(models)} entries but must have at least 2: for one take the model itself"
            )
        if len({model.is_long_range for model in models}) > 1:
            raise ValueError("`models` mixes models with and without a long-range part: take those of one kind")
        self.models = list(models)

    @property
    def is_polarizable(self) -> bool:
        """Whether an external field induces anything in all of the models."""
        return all(model.is_polarizable for model in self.models)

    @property
    def is_self_consistent(self) -> bool:
        """Whether in all of the models what is induced feels what else is induced."""
        return all(model.is_self_consistent for model in self.models)

    def compute(
        self, structures: Structures, properties: Sequence[str] = ("energy", "forces"), **options: Any
    ) -> dict[str, Any]:
        """Compute mean and spread of properties over the models.

        Parameters
        ----------
        structures, properties, options
            As in `Model.compute`; results are NumPy arrays.

        Returns
        -------
        dict
            For each property the mean by its name, and the standard deviation over the models (N − 1 in the
            denominator) as ``NAME_std``; and ``"screening"`` where it applies.
        """
        return combine([model.compute(structures, properties, **options) for model in self.models])


def combine(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join what several models computed into means and spreads, named as by `Ensemble.compute`."""
    joined: dict[str, Any] = {}
    for name, first in results[0].items():
        if name == "screening":
            alike = [len({result[name][index] for result in results}) == 1 for index in range(len(first))]
            joined[name] = [label if same else "mixed" for label, same in zip(first, alike, strict=True)]
            continue
        values = np.stack([result[name] for result in results])
        joined[name] = values.mean(axis=0)
        joined[f"{name}_std"] = values.std(axis=0, ddof=1)
    return joined
