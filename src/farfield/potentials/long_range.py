"""LongRange: latent multipoles from a model's features, and their Coulomb energy. The plug-in for anyone's model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from farfield.atoms.batch import AtomicBatch
from farfield.atoms.frames import open_arms
from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.distributed import sum_over_ranks, to_each_rank, together
from farfield.electrostatics.multipoles import Multipoles, traceless
from farfield.electrostatics.response import MODES, LinearResponse, ResponseResult
from farfield.electrostatics.response_drive import field_energy
from farfield.electrostatics.susceptibility import Response
from farfield.potentials.baselines import BOND_REACH, bond_increments, charge_table, free_atom_table, look_up_free_atoms
from farfield.potentials.features import Features
from farfield.potentials.heads import ChargeHead, TensorHead, VectorHead
from farfield.potentials.response_heads import AnisotropyHead, BondFeatures, PositiveHead, bounded
from farfield.units import COULOMB_CONSTANT

#: Share of the bounds below which self-consistent response surely has a minimum that bounded κ and α may reach.
_SAFETY = 0.95


@dataclass(frozen=True, eq=False)
class LongRangeResult:
    """Long-range energy, and what it comes from; everything latent.

    Attributes
    ----------
    energy
        Of each system (eV), shape (systems,), response and external field included.
    multipoles
        Permanent multipoles of the atoms.
    response
        Softness and polarizability of the atoms; None for a model without response.
    details
        Energies apart, induced multipoles, potential and field; None for a model without response.
    excess
        By how much the heads' charges miss each system's total charge (e), before a constraint spreads the difference,
        shape (systems,); None where the batch does not give total charges, or a process group has no use for them.
    """

    energy: Float[Tensor, " systems"]
    multipoles: Multipoles
    response: Response | None = None
    details: ResponseResult | None = None
    excess: Float[Tensor, " systems"] | None = None

    def detached(self) -> LongRangeResult:
        """Return the same without any graph."""
        return LongRangeResult(
            energy=self.energy.detach(),
            multipoles=self.multipoles.detached(),
            response=None if self.response is None else self.response.detached(),
            details=None if self.details is None else self.details.detached(),
            excess=None if self.excess is None else self.excess.detach(),
        )


class LongRange(nn.Module):
    """Latent multipoles and response from features, summed by the Coulomb solver (LES, arXiv 2408.15165, 2605.05746).

    All parameters exist from construction. The energy is to be *added* to that of the short-range model; train the two
    together on energies and forces. Every combination of multipoles and response is a model. A uniform field,
    ``batch.external_field`` (physical, V/Å), adds −F·P to the energy; along periodic directions only dipoles feel it
    there, and charges by forces F·Z* that `farfield.Model` adds.

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
        Widths of the charge head's hidden layers, and of those of softness and polarizability.
    first_scalars
        Make charges from the first so many scalars only, which also gate vectors and tensors; None: from all features.
        The first ``n_features`` scalars of `CACE` come before any message, and so know an atom's surroundings within
        the cutoff alone.
    charge_scale
        Factor on the heads' outputs. Small, so that training starts from a nearly uncharged model: Coulomb forces of
        random charges would drown the short range.
    induced_charges, induced_dipoles
        Also predict a softness κ, a polarizability α of each atom: charges and dipoles that follow potential and field.
    response
        ``"one-shot"``: induced by the permanent multipoles alone; ``"scf"``: also by each other.
    anisotropic
        α is a matrix: a positive number plus a positive semidefinite matrix made of vectors and tensors.
    conserve_charge, field_on_charges
        As in `farfield.LinearResponse`.
    softness_scale, polarizability_scale
        κ (e²/eV) and α (e²·Å²/eV) of a fresh model. Small: energies tell slowly that there is less response than at the
        start, and a softness of 0.01 lets charge flow through whole clusters.
    bounded_response
        Keep κ and α where the self-consistent energy surely has a minimum (κ < √(2π)σ/(2k_e), α < 3√(2π)σ³/(2k_e)).
        None: with ``response="scf"``.
    free_atom_polarizabilities
        α is the learned number, starting near 1, times that of the free atom, instead of ``polarizability_scale``.
    nominal_charges, nominal_factor
        Charges (e) by element, times a factor, that the learned charges are added to; fixed, not learned.
    bond_charges
        Charge (e per unit of Pauling's electronegativity) that each bond moves to its more electronegative end; the
        learned charges are added to it (see `farfield.potentials.baselines.bond_increments`). Fixed, not learned.
        Trained from nothing, charges tend to stay small and spread out; .4 starts organic molecules near the charges
        that their electron densities give. 0: none.
    bond_cutoff, bond_channels
        For models that give no vectors (tensors): make as many from their scalars and the bond vectors of neighbours
        within this distance (Å).
    process_group
        The torch.distributed process group whose ranks hold the atoms, each with the features of its own; gradients are
        those of `Coulomb` in a process group, and a constraint holds for the whole system. No part of `config`.

    Raises
    ------
    ValueError
        If a wanted multipole has no features to come from, or an option is unknown.
    """

    #: Options of `farfield.observables.born_charges` that models were made with, where others than usual.
    born_options: Mapping[str, Any] = MappingProxyType({})
    #: ε∞ of all systems, open ones too, where models were made so.
    epsilon_everywhere: float | None = None

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
        induced_charges: bool = False,
        induced_dipoles: bool = False,
        response: str = "one-shot",
        anisotropic: bool = False,
        conserve_charge: bool = True,
        field_on_charges: bool | None = None,
        softness_scale: float = 0.0002,
        polarizability_scale: float = 0.05,
        bounded_response: bool | None = None,
        free_atom_polarizabilities: bool = False,
        nominal_charges: Mapping[int | str, float] | None = None,
        nominal_factor: float = 1.0,
        bond_charges: float = 0.0,
        bond_cutoff: float | None = None,
        bond_channels: int = 8,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        if scalars < 1:
            raise ValueError(f"`scalars` is {scalars} but must be at least 1: charges come from invariant features")
        if bond_cutoff is not None and not bond_cutoff > 0:
            raise ValueError(f"`bond_cutoff` is {bond_cutoff} but must be positive (Å), or None")
        from_bonds = 0 if bond_cutoff is None else bond_channels
        own_vectors, own_tensors = vectors or from_bonds, tensors or from_bonds
        remedy = "use a model that gives {0}, or `bond_cutoff`"
        if dipoles and own_vectors < 1:
            raise ValueError("`dipoles` need vector features but `vectors` is 0: " + remedy.format("vectors"))
        if quadrupoles and own_tensors < 1:
            raise ValueError("`quadrupoles` need tensor features but `tensors` is 0: " + remedy.format("tensors"))
        if total_charge not in (None, "constraint", "feature"):
            raise ValueError(f"`total_charge` is {total_charge!r} but must be None, 'constraint' or 'feature'")
        if learned_weights and total_charge != "constraint":
            raise ValueError("`learned_weights` spread the residual of total_charge='constraint': set that too")
        if not epsilon_infinity > 0:
            raise ValueError(f"`epsilon_infinity` is {epsilon_infinity} but must be positive")
        if process_group is not None and (induced_charges or induced_dipoles):
            raise ValueError(
                "`process_group` is given, but induced charges and dipoles need all atoms of a system on one process: "
                "leave it out"
            )
        if first_scalars is not None and not 1 <= first_scalars <= scalars:
            raise ValueError(f"`first_scalars` is {first_scalars} but must lie between 1 and the {scalars} scalars")
        if response not in MODES:
            raise ValueError(f"`response` is {response!r} but must be one of {', '.join(map(repr, MODES))}")
        if anisotropic and not induced_dipoles:
            raise ValueError("`anisotropic` is about the polarizability: set `induced_dipoles` too")
        if anisotropic and own_vectors + own_tensors < 1:
            raise ValueError(
                "`anisotropic` needs vector or tensor features but both widths are 0: " + remedy.format("them")
            )
        if free_atom_polarizabilities and not induced_dipoles:
            raise ValueError("`free_atom_polarizabilities` are about the polarizability: set `induced_dipoles` too")
        nominal, table = charge_table(nominal_charges or {})
        self._config = {
            "scalars": scalars, "vectors": vectors, "tensors": tensors, "dipoles": dipoles,
            "quadrupoles": quadrupoles, "smearing": smearing, "accuracy": accuracy, "total_charge": total_charge,
            "learned_weights": learned_weights, "epsilon_infinity": epsilon_infinity, "n_hidden": list(n_hidden),
            "first_scalars": first_scalars, "charge_scale": charge_scale,
            "induced_charges": induced_charges, "induced_dipoles": induced_dipoles,
            "response": response, "anisotropic": anisotropic, "conserve_charge": conserve_charge,
            "field_on_charges": field_on_charges, "softness_scale": softness_scale,
            "polarizability_scale": polarizability_scale, "bounded_response": bounded_response,
            "free_atom_polarizabilities": free_atom_polarizabilities,
            "nominal_charges": {str(number): value for number, value in nominal.items()} or None,
            "nominal_factor": nominal_factor, "bond_charges": bond_charges,
            "bond_cutoff": bond_cutoff, "bond_channels": bond_channels,
        }  # fmt: skip
        self.total_charge = total_charge
        self.epsilon_infinity = float(epsilon_infinity)
        self.coulomb = Coulomb(smearing, accuracy=accuracy, process_group=process_group)
        self.linear_response = LinearResponse(
            self.coulomb, mode=response, conserve_charge=conserve_charge, field_on_charges=field_on_charges
        )
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
        self.dipoles = VectorHead(self.n_scalars, own_vectors, scale=charge_scale) if dipoles else None
        self.quadrupoles = TensorHead(self.n_scalars, own_tensors, scale=charge_scale) if quadrupoles else None
        self.softness = PositiveHead(scalars, n_hidden=n_hidden, scale=softness_scale) if induced_charges else None
        self.polarizability = self.anisotropy = self.bonds = None
        if induced_dipoles:
            unit = 1.0 if free_atom_polarizabilities else polarizability_scale
            self.polarizability = PositiveHead(scalars, n_hidden=n_hidden, scale=unit)
            if anisotropic:
                self.anisotropy = AnisotropyHead(scalars, own_vectors, own_tensors, scale=0.1 * unit)
        directional = dipoles or quadrupoles or anisotropic
        if bond_cutoff is not None and directional and not (vectors and tensors):
            self.bonds = BondFeatures(scalars, bond_channels, bond_cutoff)
        self.bond_charges = float(bond_charges)
        self.bond_cutoff = 0.0 if self.bonds is None or bond_cutoff is None else float(bond_cutoff)
        #: Neighbours that the module itself needs (Å).
        self.reach = max(self.bond_cutoff, BOND_REACH if bond_charges else 0.0)
        # Tables, not buffers: they are made from the configuration, and no weights.
        self._nominal = nominal_factor * table if nominal else None
        self._free_atoms = free_atom_table() if free_atom_polarizabilities else None
        self.limits: tuple[float, float] | None = None
        if response == "scf" if bounded_response is None else bounded_response:
            reach = _SAFETY * math.sqrt(2.0 * math.pi) * smearing / (2.0 * COULOMB_CONSTANT)
            self.limits = (reach, 3.0 * smearing**2 * reach)

    @property
    def has_response(self) -> bool:
        """Whether charges or dipoles are induced."""
        return self.softness is not None or self.polarizability is not None

    @property
    def _permanent_order(self) -> int:
        """Highest permanent multipoles."""
        return 2 if self.quadrupoles is not None else int(self.dipoles is not None)

    @property
    def _highest_order(self) -> int:
        """Highest multipoles, permanent or induced."""
        return max(self._permanent_order, int(self.polarizability is not None))

    def config(self) -> dict[str, Any]:
        """Arguments that rebuild the module."""
        return dict(self._config)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Rebuild the module from `config`, with fresh weights."""
        return cls(**config)

    def rescale(self, charge_scale: float) -> None:
        """Set ``charge_scale`` and leave the multipoles what they are: training moves them faster or more slowly."""
        for head in (self.charges, self.dipoles, self.quadrupoles):
            if head is not None:
                head.rescale(charge_scale)
        self._config["charge_scale"] = charge_scale

    def multipoles(self, batch: AtomicBatch, features: Features, *, detach_total: bool = False) -> Multipoles:
        """Latent permanent multipoles with their graph.

        With ``detach_total`` the residual that a constraint spreads over the atoms carries no gradient (Born charges of
        periodic systems need that).

        Raises
        ------
        ValueError
            If the model uses the total charge and the batch does not give it.
        """
        return self._multipoles(batch, self._directed(batch, features), detach_total)[0]

    def response(self, batch: AtomicBatch, features: Features) -> Response | None:
        """Latent softness and polarizability with their graph; None for a model without response."""
        return self._response(batch, self._directed(batch, features))

    def forward(
        self, batch: AtomicBatch, features: Features, scale: Float[Tensor, " systems"] | None = None
    ) -> LongRangeResult:
        """Latent multipoles of a batch, their response and their Coulomb energy.

        Parameters
        ----------
        batch, features
            The batch (with neighbours if the module has a ``bond_cutoff``), and what the model says of its atoms.
        scale
            Physical over latent multipoles: √ε_e times the sign of the gauge, shape (systems,). It turns the external
            field and the total charge into latent ones. None: √ε∞ in 3D-periodic systems, else 1.
        """
        return self._result(batch, self._directed(batch, features), scale)

    def moments(
        self,
        batch: AtomicBatch,
        features: Features,
        scale: Float[Tensor, " systems"] | None = None,
        *,
        detach_total: bool = False,
    ) -> Multipoles:
        """Latent multipoles that make the polarization, with their graph: permanent ones and induced ones.

        Induced dipoles are always in it; induced charges along the open directions of each system, where an external
        field acts on them, as the moments Δq r that they make about its geometric centre: in the dipoles of the atoms
        (and their quadrupoles), not in the charges. Without response they are the permanent multipoles, and nothing is
        summed.

        Parameters
        ----------
        batch, features, scale
            As in `forward`.
        detach_total
            As in `multipoles`: for the charges themselves, not for what they induce.
        """
        directed = self._directed(batch, features)
        if not self.has_response:
            return self._multipoles(batch, directed, detach_total)[0]
        result = self._result(batch, directed, scale)
        moments = self.polarizing(batch, result)
        if detach_total and self.total_charge == "constraint":
            moments = moments.replace(charges=self._multipoles(batch, directed, True)[0].charges)
        return moments

    def polarizing(self, batch: AtomicBatch, result: LongRangeResult) -> Multipoles:
        """Multipoles that make the polarization, of a result of this module for the batch (see `moments`)."""
        permanent = result.multipoles
        if result.details is None:
            return permanent
        induced = result.details.induced
        dipoles, quadrupoles = [permanent.dipoles, induced.dipoles], [permanent.quadrupoles]
        if self.softness is not None and self.linear_response.field_on_charges:
            arms = open_arms(batch)
            carried = induced.charges[:, None] * arms
            dipoles.append(carried)
            # These dipoles, where the atoms are, have twice the second moment of the charges that they stand for.
            quadrupoles.append(-traceless(carried[:, :, None] * arms[:, None, :]))
        return Multipoles(permanent.charges, _sum_of(dipoles), _sum_of(quadrupoles))

    def atomic_polarizabilities(self, batch: AtomicBatch, features: Features) -> Float[Tensor, "atoms 3 3"]:
        """Latent ∂(moment)/∂F of each atom (e²·Å²/eV), as `LinearResponse.polarizability`; zero without response."""
        response = self.response(batch, features)
        if response is None:
            return batch.positions.new_zeros(batch.n_atoms, 3, 3)
        plan = self.coulomb.plan_of(batch, self._highest_order)
        return self.linear_response.polarizability(batch, response, plan, order=self._permanent_order)

    def total_polarizability(self, batch: AtomicBatch, response: Response) -> Float[Tensor, "systems 3 3"]:
        """Latent ∂P/∂F of each system (e²·Å²/eV), as `LinearResponse.total_polarizability`, of a known response."""
        plan = self.coulomb.plan_of(batch, self._highest_order)
        return self.linear_response.total_polarizability(batch, response, plan, order=self._permanent_order)

    def _result(self, batch: AtomicBatch, features: Features, scale: Tensor | None) -> LongRangeResult:
        multipoles, excess = self._multipoles(batch, features, False)
        response = self._response(batch, features)
        field = total = None
        if batch.external_field is not None:
            if self.coulomb.process_group is not None:
                raise ValueError(
                    "`batch.external_field` is given, but a field needs all atoms of a system on one process: make the "
                    "module without `process_group`"
                )
            scale = self._screening(batch) if scale is None else scale.to(batch.positions)
            field = batch.external_field * scale[:, None]
            if batch.total_charge is not None:
                # Under a constraint charges add up to the total charge as given, whatever the gauge.
                total = batch.total_charge / (scale.abs() if self.total_charge == "constraint" else scale)
        if response is None:
            energy = self.coulomb(batch, multipoles, outputs="energy").energy
            if field is not None:
                energy = energy + field_energy(batch, multipoles, field, total)
            return LongRangeResult(energy=energy, multipoles=multipoles, excess=excess)
        plan = self.coulomb.plan_of(batch, self._highest_order, self.coulomb.charges_lead(batch, multipoles))
        details = self.linear_response(batch, multipoles, response, plan, external_field=field, total_charge=total)
        return LongRangeResult(details.energy, multipoles, response, details, excess)

    def _directed(self, batch: AtomicBatch, features: Features) -> Features:
        """Features with vectors and tensors from bonds, where the model gives none of its own."""
        if self.bonds is None:
            return features
        vectors, tensors = self.bonds(batch, features.scalars)
        return Features(
            energy=features.energy,
            scalars=features.scalars,
            vectors=vectors if self._config["vectors"] == 0 else features.vectors,
            tensors=tensors if self._config["tensors"] == 0 else features.tensors,
        )

    def _multipoles(
        self, batch: AtomicBatch, features: Features, detach_total: bool
    ) -> tuple[Multipoles, Tensor | None]:
        """Permanent multipoles, and the excess of `LongRangeResult`."""
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
        # Vectors and tensors from bonds are no input of the charges, which the model's own scalars describe.
        vectors = features.vectors if self._config["vectors"] and self.reads_lengths else None
        tensors = features.tensors if self._config["tensors"] and self.reads_lengths else None
        raw = self.charges(scalars, vectors, tensors, inputs)
        charges = raw[:, 0]
        if self._nominal is not None:
            self._nominal = self._nominal.to(charges.device)
            charges = charges + self._nominal[batch.numbers].to(charges.dtype)
        if self.bond_charges:
            charges = charges + self.bond_charges * bond_increments(batch).to(charges.dtype)
        excess = self._excess(charges, batch)
        if self.total_charge == "constraint":
            assert excess is not None  # narrows the type
            weights = nn.functional.softplus(raw[:, 1]) if self.learned_weights else torch.ones_like(charges)
            charges = charges - self._shares(excess, weights, batch, detach_total)
        dipoles = quadrupoles = None
        if self.dipoles is not None and features.vectors is not None:
            dipoles = self.dipoles(scalars, features.vectors)
        if self.quadrupoles is not None and features.tensors is not None:
            quadrupoles = self.quadrupoles(scalars, features.tensors)
        return Multipoles(charges, dipoles, quadrupoles), excess

    def _response(self, batch: AtomicBatch, features: Features) -> Response | None:
        if not self.has_response:
            return None
        kappa: Tensor | None = None
        alpha: Tensor | None = None
        if self.softness is not None:
            kappa = self.softness(features.scalars)
        if self.polarizability is not None:
            alpha = self.polarizability(features.scalars)
            if self.anisotropy is not None:
                one = torch.eye(3, dtype=alpha.dtype, device=alpha.device)
                added = self.anisotropy(features.scalars, features.vectors, features.tensors)
                alpha = alpha[:, None, None] * one + added
            if self._free_atoms is not None:
                self._free_atoms = self._free_atoms.to(alpha.device)
                free = look_up_free_atoms(self._free_atoms, batch.numbers).to(alpha.dtype)
                alpha = alpha * (free if alpha.ndim == 1 else free[:, None, None])
        if self.limits is not None:
            kappa = None if kappa is None else bounded(kappa, self.limits[0])
            alpha = None if alpha is None else bounded(alpha, self.limits[1])
        return Response(kappa, alpha)

    def _screening(self, batch: AtomicBatch) -> Float[Tensor, " systems"]:
        """√ε∞ of 3D-periodic systems, 1 of others."""
        return batch.pbc.all(-1).to(batch.positions.dtype) * (self.epsilon_infinity**0.5 - 1.0) + 1.0

    def _excess(self, charges: Tensor, batch: AtomicBatch) -> Tensor | None:
        """Sum of each system's charges minus Q_tot/√ε_e; None where Q_tot is not known."""
        ranks = self.coulomb.process_group
        # Ranks of a model that uses no total charge need not agree in giving it, and would wait for each other here.
        if batch.total_charge is None or (ranks is not None and self.total_charge is None):
            return None
        screened = batch.pbc.all(-1).to(charges.dtype) * (self.epsilon_infinity**-0.5 - 1.0) + 1.0
        sums = charges.new_zeros(batch.n_systems).index_add(0, batch.system, charges)
        return sum_over_ranks(sums, ranks) - batch.total_charge.to(charges.dtype) * screened

    def _shares(self, excess: Tensor, weights: Tensor, batch: AtomicBatch, detached: bool) -> Tensor:
        """Each atom's share of its system's excess, by weights."""
        ranks = self.coulomb.process_group
        if detached:
            excess, weights = excess.detach(), weights.detach()
        total = sum_over_ranks(weights.new_zeros(batch.n_systems).index_add(0, batch.system, weights), ranks)
        share = weights / to_each_rank(total, ranks)[batch.system]
        return to_each_rank(excess, ranks)[batch.system] * share


def _sum_of(terms: list[Tensor | None]) -> Tensor | None:
    """Sum of those that there are."""
    given = [term for term in terms if term is not None]
    return sum(given[1:], given[0]) if given else None
