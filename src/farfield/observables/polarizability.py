r"""Polarizability, the screening by induced dipoles, and whether one-shot response is stable in long waves.

The polarizability ∂P/∂F = −∂²E/∂F∂F of a system is the sum of what its atoms answer. In a periodic cell it is the
answer to the macroscopic field. One-shot response lets induced moments not feel each other: the longitudinal energy of
a wave k is multiplied by 1 − χ (dipoles) and 1 − k_D²/k² (charges),

    χ = 4π k_e tr(Σα)/(3V) ,   k_D² = 4π k_e Σκ/V ,

so that a model trained in small cells may collapse in larger ones.
"""

from __future__ import annotations

import math
import warnings
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.atoms.frames import completed_cells, perpendicular_heights
from farfield.electrostatics.susceptibility import Response
from farfield.observables.moments import Scale, scale_of_atoms
from farfield.units import COULOMB_CONSTANT

Screening = Literal["derived", "published"]


@runtime_checkable
class PolarizableModel(Protocol):
    """What these observables need of a model."""

    def add_neighbors(self, batch: AtomicBatch) -> AtomicBatch:
        """Return the batch with the neighbours the model needs."""
        ...

    def atomic_polarizabilities(self, batch: AtomicBatch) -> Tensor:
        """Latent ∂(moment of each atom)/∂F (e²·Å²/eV), shape (atoms, 3, 3), with its graph."""
        ...


class Stability(NamedTuple):
    """χ and k_D (1/Å) of each system, shape (systems,), float64; zero where not periodic along all axes."""

    chi: Float[Tensor, " systems"]
    k_d: Float[Tensor, " systems"]


def atomic_polarizabilities(
    model: PolarizableModel, batch: AtomicBatch, *, scale: Scale = 1.0
) -> Float[Tensor, "atoms 3 3"]:
    """Physical polarizability of each atom (Å³), ε_e k_e ∂(moment)/∂F, second index the field, differentiable.

    Parameters
    ----------
    model
        A model with response.
    batch
        The systems; neighbours are found where they are missing.
    scale
        Physical over latent multipoles, √ε_e times the sign of the gauge, one number or one per system.
    """
    batch = batch if batch.neighbors is not None else model.add_neighbors(batch)
    factor = COULOMB_CONSTANT * scale_of_atoms(batch, scale).square()
    return model.atomic_polarizabilities(batch) * factor[:, None, None]


def polarizability(model: PolarizableModel, batch: AtomicBatch, *, scale: Scale = 1.0) -> Float[Tensor, "systems 3 3"]:
    """Physical polarizability of each system (Å³), ε_e k_e ∂P/∂F, shape (systems, 3, 3), float64, differentiable.

    Parameters
    ----------
    model, batch, scale
        As in `atomic_polarizabilities`, whose sum it is.
    """
    total = batch.sum_over_atoms(atomic_polarizabilities(model, batch, scale=scale))
    # Symmetric but for rounding and the tolerance of a self-consistent solution.
    return 0.5 * (total + total.mT)


def stability(batch: AtomicBatch, response: Response) -> Stability:
    """χ and k_D of latent response; see the module.

    Parameters
    ----------
    batch
        The systems.
    response
        Latent κ and α of their atoms.
    """
    volume = _volumes(batch)
    chi = k_d = torch.zeros_like(volume)
    if response.polarizability is not None:
        alpha = response.polarizability.detach()
        trace = 3.0 * alpha if alpha.ndim == 1 else alpha.diagonal(dim1=1, dim2=2).sum(1)
        chi = 4.0 * math.pi * COULOMB_CONSTANT * batch.sum_over_atoms(trace) / (3.0 * volume)
    if response.softness is not None:
        total = batch.sum_over_atoms(response.softness.detach())
        k_d = (4.0 * math.pi * COULOMB_CONSTANT * total / volume).sqrt()
    return Stability(chi, k_d)


def _volumes(batch: AtomicBatch) -> Tensor:
    """Volume of each system (Å³), float64; infinite where not periodic along all axes, so that densities vanish."""
    volume = torch.linalg.det(batch.cell.detach().double()).abs()
    return torch.where(batch.pbc.all(dim=1), volume, torch.inf)


def check_stability(batch: AtomicBatch, response: Response) -> None:
    """Refuse one-shot response that is unstable in long waves, and warn of what may become so.

    Raises
    ------
    ValueError
        If χ ≥ 1, or k_D > 2π/L with L the largest perpendicular height of the cell.

    Warns
    -----
    UserWarning
        If χ > ½.
    """
    chi, k_d = stability(batch, response)
    longest = perpendicular_heights(completed_cells(batch)).max(dim=1).values
    remedy = "train with response='scf', or pass allow_unstable=True if you know better"
    for wrong, what in (
        (chi >= 1.0, "χ = 4πk_e tr(Σα)/(3V) is {chi:.3g} but must stay below 1"),
        (k_d * longest > 2.0 * math.pi, "k_D = √(4πk_eΣκ/V) is {k_d:.3g}/Å but must stay below 2π/L = {bound:.3g}/Å"),
    ):
        if bool(wrong.any()):
            worst = int(wrong.nonzero()[0])
            bound = 2.0 * math.pi / float(longest[worst])
            text = what.format(chi=float(chi[worst]), k_d=float(k_d[worst]), bound=bound)
            raise ValueError(f"one-shot response of system {worst} is unstable in long waves: {text}; {remedy}")
    if bool((chi > 0.5).any()):
        worst = int(chi.argmax())
        warnings.warn(
            f"one-shot response of system {worst} has χ = {float(chi[worst]):.1f}, above ½: polarization that feels "
            "itself matters there, and larger cells may become unstable; a model with response='scf' would not",
            UserWarning,
            stacklevel=2,
        )


def effective_epsilon(
    batch: AtomicBatch,
    epsilon_infinity: Float[Tensor, " systems"],
    response: Response | None,
    total: Float[Tensor, "systems 3 3"] | None = None,
    screening: Screening = "derived",
) -> Float[Tensor, " systems"]:
    """ε_e, what latent multipoles of bulk are screened by: the part of ε∞ that the model's own α does not make.

    Without α ε_e = ε∞; one shot: ε∞ (1 − χ), or the published ε∞/(1 + χ), equal to it at first order; self-consistent:
    ε∞/ε_m with ε_m = 1 + 4πk_e tr(∂P/∂F)/(3V).

    Parameters
    ----------
    batch
        The systems.
    epsilon_infinity
        ε∞ of each, shape (systems,); returned as it is where not periodic along all axes.
    response
        Latent response.
    total
        Latent ∂P/∂F of each system, of a self-consistent model; None for one shot.
    screening
        ``"derived"`` or ``"published"``.

    Raises
    ------
    ValueError
        For an unknown ``screening``, or where nothing of ε∞ would be left (χ ≥ 1).
    """
    if screening not in ("derived", "published"):
        raise ValueError(f"`screening` is {screening!r} but must be one of 'derived', 'published'")
    if response is None or response.polarizability is None:
        return epsilon_infinity
    chi = stability(batch, response).chi
    if total is not None:
        trace = total.detach().double().diagonal(dim1=1, dim2=2).sum(1)
        own = 1.0 + 4.0 * math.pi * COULOMB_CONSTANT * trace / (3.0 * _volumes(batch))
        return epsilon_infinity / own
    if screening == "published":
        return epsilon_infinity / (1.0 + chi)
    if bool((chi >= 1.0).any()):
        worst = int(chi.argmax())
        raise ValueError(
            f"χ of system {worst} is {float(chi[worst]):.3g}: with one-shot response nothing of ε∞ is left to screen "
            "the multipoles; use a model with response='scf', or screening='published'"
        )
    return epsilon_infinity * (1.0 - chi)
