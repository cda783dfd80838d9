"""LongRange: latent multipoles from a model's features, and their Coulomb energy. The plug-in for anyone's model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from farfield.atoms.batch import AtomicBatch
from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.distributed import sum_over_ranks, to_each_rank, together
from farfield.electrostatics.multipoles import Multipoles
from farfield.potentials.features import Features
from farfield.potentials.heads import ChargeHead, TensorHead, VectorHead


@dataclass(frozen=True, eq=False)
class LongRangeResult:
    """Long-range energy of each system (eV), shape (systems,), and the latent multipoles that it comes from."""

    energy: Float[Tensor, " systems"]
    multipoles: Multipoles


class LongRange(nn.Module):
    """Latent charges (and multipoles) from features, summed by the Coulomb solver (LES, arXiv 2408.15165).

    All parameters exist from construction. The energy is to be *added* to that of the short-range model; train the two
    together on energies and forces.

    Parameters
    ----------
    scalars, vectors, tensors
        Widths of the features that the model gives; 0 where it gives none.
    dipoles, quadrupoles
        Also predict latent atomic dipoles (needs vectors), quadrupoles (needs tensors).
    smearing
        Width σ of the Gaussians (Å).
    accuracy
        Relative accuracy of the forces of the sum.
    total_charge
        What is done with ``batch.total_charge``: nothing (None), ``"constraint"`` (the residual is spread over the
        atoms, with learned weights if ``learned_weights``), ``"feature"`` (an input to the heads: models of several
        charge states).
    learned_weights
        Spread the residual of a constraint by learned positive weights instead of uniformly.
    epsilon_infinity
        High-frequency dielectric constant that latent charges of 3D-periodic systems are screened by: they sum to
        Q_tot/√ε∞ under the constraint. 1 for open systems whatever it is.
    n_hidden
        Widths of the charge head's hidden layers.
    first_scalars
        Make charges from the first so many scalars only, which also gate vectors and tensors; None: from all features.
        The first ``n_features`` scalars of `CACE` come before any message, and so know an atom's surroundings within
        the cutoff alone.
    charge_scale
        Factor on the heads' outputs. Small, so that training starts from a nearly uncharged model: Coulomb forces of
        random charges would drown the short range.
    process_group
        The torch.distributed process group whose ranks hold the atoms, each with the features of its own; gradients are
        those of `Coulomb` in a process group, and a constraint holds for the whole system. No part of `config`.

    Raises
    ------
    ValueError
        If a wanted multipole has no features to come from, or an option is unknown.
    """

    def __init__(
        self,
        scalars: int,
        vectors: int = 0,
        tensors: int = 0,
        *,
        dipoles: bool = False,
        quadrupoles: bool = False,
        smearing: float = 1.0,
        accuracy: float = 1e-4,
        total_charge: str | None = None,
        learned_weights: bool = False,
        epsilon_infinity: float = 1.0,
        n_hidden: Sequence[int] = (32, 16),
        first_scalars: int | None = None,
        charge_scale: float = 0.02,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        if scalars < 1:
            raise ValueError(f"`scalars` is {scalars} but must be at least 1: charges come from invariant features")
        if dipoles and vectors < 1:
            raise ValueError("`dipoles` need vector features but `vectors` is 0: use a model that gives vectors")
        if quadrupoles and tensors < 1:
            raise ValueError("`quadrupoles` need tensor features but `tensors` is 0: use a model that gives tensors")
        if total_charge not in (None, "constraint", "feature"):
            raise ValueError(f"`total_charge` is {total_charge!r} but must be None, 'constraint' or 'feature'")
        if learned_weights and total_charge != "constraint":
            raise ValueError("`learned_weights` spread the residual of total_charge='constraint': set that too")
        if not epsilon_infinity > 0:
            raise ValueError(f"`epsilon_infinity` is {epsilon_infinity} but must be positive")
        if first_scalars is not None and not 1 <= first_scalars <= scalars:
            raise ValueError(f"`first_scalars` is {first_scalars} but must lie between 1 and the {scalars} scalars")
        self._config = {
            "scalars": scalars, "vectors": vectors, "tensors": tensors, "dipoles": dipoles,
            "quadrupoles": quadrupoles, "smearing": smearing, "accuracy": accuracy, "total_charge": total_charge,
            "learned_weights": learned_weights, "epsilon_infinity": epsilon_infinity, "n_hidden": list(n_hidden),
            "first_scalars": first_scalars, "charge_scale": charge_scale,
        }  # fmt: skip
        self.total_charge = total_charge
        self.epsilon_infinity = float(epsilon_infinity)
        self.coulomb = Coulomb(smearing, accuracy=accuracy, process_group=process_group)
        self.n_scalars = scalars if first_scalars is None else first_scalars
        # lengths of vectors and tensors come after all messages
        self.reads_lengths = first_scalars is None
        self.charges = ChargeHead(
            self.n_scalars,
            vectors if self.reads_lengths else 0,
            tensors if self.reads_lengths else 0,
            n_hidden=n_hidden,
            inputs=int(total_charge == "feature"),
            outputs=2 if learned_weights else 1,
            scale=charge_scale,
        )
        self.learned_weights = learned_weights
        self.dipoles = VectorHead(self.n_scalars, vectors, scale=charge_scale) if dipoles else None
        self.quadrupoles = TensorHead(self.n_scalars, tensors, scale=charge_scale) if quadrupoles else None

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild the module."""
        return dict(self._config)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Rebuild the module from `config`, with fresh weights."""
        return cls(**config)

    def multipoles(self, batch: AtomicBatch, features: Features, *, detach_total: bool = False) -> Multipoles:
        """Latent multipoles with their graph.

        With ``detach_total`` the residual that a constraint spreads over the atoms carries no gradient (Born charges of
        periodic systems need that).

        Raises
        ------
        ValueError
            If the model uses the total charge and the batch does not give it.
        """
        with together(self.coulomb.process_group):
            if self.total_charge is not None and batch.total_charge is None:
                raise ValueError(
                    f"`batch.total_charge` is None but the model was made with total_charge={self.total_charge!r}: "
                    "give every system its total charge (e)"
                )
        inputs = None
        if self.total_charge == "feature":
            assert batch.total_charge is not None  # narrows the type
            inputs = batch.total_charge.to(features.scalars.dtype)[batch.system, None]
        scalars = features.scalars[:, : self.n_scalars]
        vectors, tensors = (features.vectors, features.tensors) if self.reads_lengths else (None, None)
        raw = self.charges(scalars, vectors, tensors, inputs)
        charges = raw[:, 0]
        if self.total_charge == "constraint":
            weights = nn.functional.softplus(raw[:, 1]) if self.learned_weights else None
            charges = self._constrained(charges, batch, weights, detach_total)
        dipoles = quadrupoles = None
        if self.dipoles is not None and features.vectors is not None:
            dipoles = self.dipoles(scalars, features.vectors)
        if self.quadrupoles is not None and features.tensors is not None:
            quadrupoles = self.quadrupoles(scalars, features.tensors)
        return Multipoles(charges, dipoles, quadrupoles)

    def forward(self, batch: AtomicBatch, features: Features) -> LongRangeResult:
        """Latent multipoles of a batch and their Coulomb energy."""
        multipoles = self.multipoles(batch, features)
        result = self.coulomb(batch, multipoles, outputs="energy")
        return LongRangeResult(energy=result.energy, multipoles=multipoles)

    def _constrained(self, charges: Tensor, batch: AtomicBatch, weights: Tensor | None, detached: bool) -> Tensor:
        """Charges moved so that each system's sum is Q_tot/√ε_e."""
        assert batch.total_charge is not None  # narrows the type
        screened = batch.pbc.all(-1).to(charges.dtype) * (self.epsilon_infinity**-0.5 - 1.0) + 1.0
        wanted = batch.total_charge.to(charges.dtype) * screened
        if weights is None:
            weights = torch.ones_like(charges)
        zeros, ranks = charges.new_zeros(batch.n_systems), self.coulomb.process_group
        residual = wanted - sum_over_ranks(zeros.index_add(0, batch.system, charges), ranks)
        if detached:
            residual, weights = residual.detach(), weights.detach()
        total = sum_over_ranks(zeros.index_add(0, batch.system, weights), ranks)
        share = weights / to_each_rank(total, ranks)[batch.system]
        return charges + to_each_rank(residual, ranks)[batch.system] * share
