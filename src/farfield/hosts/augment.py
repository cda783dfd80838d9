"""One line that gives a potential of another package its far field."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from farfield.hosts.registry import adapter, host_of
from farfield.potentials.augmented import AugmentedPotential
from farfield.potentials.features import Backbone
from farfield.potentials.long_range import LongRange


def as_backbone(host: nn.Module, *, head: str | None = None) -> nn.Module:
    """Return a model as a backbone: itself, if it is one, else an adapter with a copy of its weights.

    Parameters
    ----------
    host
        The model.
    head
        Which of several heads gives the energy, where the model has such.

    Raises
    ------
    ValueError
        If there is no adapter for it.
    ImportError
        If its package is not installed.
    """
    if isinstance(host, Backbone):
        return host
    return adapter(host_of(host)).from_host(host, head=head)


def augment(
    host: nn.Module | str | Path,
    *,
    name: str | None = None,
    trust: bool = False,
    head: str | None = None,
    reference_energies: Mapping[int, float] | None = None,
    zbl: bool = False,
    freeze: bool = False,
    **long_range: Any,
) -> AugmentedPotential:
    """Give a short-range model its far field, with fresh heads: train it from there, on energies and forces.

    Parameters
    ----------
    host
        A model of a package that ``farfield hosts`` lists, which stays as it is; or the file in which that package
        keeps one, with ``name``; or any module that follows `farfield.potentials.features.Backbone`.
    name
        Which host a file belongs to.
    trust
        Load the file though it is a pickle, which may run any code: only for files whose origin you know.
    head
        Which of several heads gives the energy, where the model has such.
    reference_energies
        Energies of the elements (eV), by atomic number, instead of the host's.
    zbl
        Add the repulsion of close nuclei.
    freeze
        Let no weight of the short range be trained.
    **long_range
        Arguments of `farfield.LongRange`: ``dipoles=True``, ``quadrupoles=True``, ``induced_dipoles=True``, ….

    Returns
    -------
    AugmentedPotential
        In the dtype and on the device of the host. ``potential.calibrate(batch)`` sets the heads' starting scales from
        a batch with neighbours.

    Raises
    ------
    ValueError
        If there is no adapter for the model, a file is given without ``name`` or ``trust``, or an option does not suit
        what the host gives.
    ImportError
        If the host's package is not installed.
    FileNotFoundError
        If there is no such file.

    Examples
    --------
    >>> potential = farfield.augment(mace_model, dipoles=True, total_charge="constraint")  # doctest: +SKIP
    >>> atoms.calc = farfield.Calculator(potential)  # doctest: +SKIP
    """
    if isinstance(host, str | Path):
        if name is None:
            raise ValueError("`host` is a file: say by `name` of which host, for example name='mace'")
        backbone: Any = adapter(name).from_checkpoint(host, trust=trust, head=head)
    else:
        backbone = as_backbone(host, head=head)
    if reference_energies is None:
        reference_energies = getattr(backbone, "reference_energies", {})
    parameter = next(backbone.parameters())
    far = LongRange(backbone.n_scalars, backbone.n_vectors, backbone.n_tensors, **long_range)
    if freeze:  # not the other way round: hosts have constants among their parameters
        backbone.requires_grad_(False)
    return AugmentedPotential(
        backbone, far.to(parameter.device, parameter.dtype), reference_energies=reference_energies, zbl=zbl
    )
