"""The face of a trained model: load, save, card, and every output with its physical sign and scale."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

import farfield
from farfield import zoo
from farfield.atoms.batch import AtomicBatch
from farfield.atoms.chunks import chunks
from farfield.atoms.structures import from_ase
from farfield.card import EpsilonInfinity, ModelCard, check_epsilon_infinity
from farfield.electrostatics.multipoles import Multipoles
from farfield.electrostatics.susceptibility import Response
from farfield.model_file import ModelFileError, is_pickle, read_model_file, write_model_file
from farfield.observables.born import Mean, forces_in_field
from farfield.observables.moments import with_neighbors
from farfield.observables.outputs import (
    BORN,
    ENERGETIC,
    FIELDS,
    LATENT,
    MOMENTS,
    POLARIZABILITIES,
    PULL,
    RESPONSE,
    ScaledPotential,
    screened_epsilon,
)
from farfield.observables.polarizability import Screening, check_stability
from farfield.potentials.augmented import AugmentedPotential

if TYPE_CHECKING:
    from ase import Atoms

    Structures = AtomicBatch | Atoms | Sequence[Atoms]

#: Names that `Model.compute` knows.
PROPERTIES = (*ENERGETIC, PULL, *MOMENTS, *FIELDS, *RESPONSE, *BORN)
#: Those that depend on how latent multipoles are scaled.
_SCALED = {*MOMENTS, *FIELDS, *POLARIZABILITIES, "epsilon_e", *BORN} - set(LATENT)


def load(
    name: str | Path,
    *,
    trust: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Model:
    """Load a model from a file, or a shipped one by its name.

    Parameters
    ----------
    name
        Path of a ``.ff`` file, or the name of a shipped model (``farfield.zoo.names()``). A file goes first. Also a
        file in which mace-torch keeps a whole model (``NAME.model``): a ``MACELES`` with the long range that stands in
        it, or a short-range ``MACE``. ``Model.save`` then writes it as a ``.ff`` file.
    trust
        Load the file though it is a pickle, which may run any code: only for files whose origin you know.
    device, dtype
        Where and in which precision to compute, if not on the CPU and as saved.

    Raises
    ------
    FileNotFoundError
        If ``name`` is a path, and there is no such file.
    ValueError
        If it is the name of no shipped model; the error lists those there are.
    ModelFileError
        If the file is no farfield model, damaged, or of a newer format; or a pickle, and ``trust`` is not set.
    ImportError
        If the file needs a package that is not installed.

    Warns
    -----
    UserWarning
        If a pickle is loaded.
    """
    path = Path(name)
    if not path.exists():
        if path.suffix or len(path.parts) > 1:
            raise FileNotFoundError(
                f"there is no model file {str(name)!r}. Give the path of a .ff file, or the name of a shipped model: "
                f"{', '.join(zoo.names()) or 'none'}"
            )
        path = zoo.path(str(name))
    model = _from_pickle(path, trust) if is_pickle(path) else Model.from_file(path)
    return model.to(device=device, dtype=dtype)


def _from_pickle(path: Path, trust: bool) -> Model:
    if not trust:
        raise ModelFileError(
            f"{str(path)!r} is not a farfield model but a pickle, which may run any code when it is loaded: if you "
            "know where it comes from, load it with trust=True, or write it as a .ff file by `farfield convert --trust`"
        )
    from farfield.hosts.pickles import load_potential

    warnings.warn(
        f"{str(path)!r} is a pickle: loading it runs the code that is in it. Save the model as a .ff file, which holds "
        "none",
        UserWarning,
        stacklevel=3,
    )
    potential = load_potential(path)
    far = potential.long_range
    card = ModelCard(
        name=path.stem,
        description="a model of mace-torch" + ("" if far is None else ", with its long range by the library les"),
        gauge="as in the file",
        notes=f"made from {path.name}",
    )
    return Model(potential, card)


class Model:
    """A trained potential with its card: energies and their derivatives, and physical charges and moments.

    Parameters
    ----------
    potential
        The trained potential; it is put into evaluation mode.
    card
        What is known of it. Elements, cutoffs and reference energies are filled in from the potential.
    """

    def __init__(self, potential: AugmentedPotential, card: ModelCard | None = None) -> None:
        # The weights keep requiring gradients: torch.matmul rounds otherwise without, and a model saved straight from
        # training is to give the same bits as after loading.
        self.potential = potential.eval()
        card = card or ModelCard()
        recipe = potential.config()["backbone"]
        self.card = card.replace(
            elements=card.elements or tuple(sorted(int(number) for number in recipe.get("elements", ()))),
            cutoff=potential.cutoff,
            receptive_radius=potential.receptive_radius,
            reference_energies=dict(potential.reference_energies),
            versions=dict(card.versions) or {"farfield": farfield.__version__, "torch": torch.__version__},
        )

    def __repr__(self) -> str:
        kind = "short-range" if self.potential.long_range is None else "long-range"
        return f"Model({self.card.name!r}, {kind}, cutoff {self.potential.cutoff:g} Å, {self.dtype})"

    @property
    def dtype(self) -> torch.dtype:
        """Dtype that the potential computes in; energies are summed in float64."""
        return self.potential.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.potential.parameters()).device

    @property
    def is_long_range(self) -> bool:
        """Whether the model has charges at all."""
        return self.potential.long_range is not None

    @property
    def is_polarizable(self) -> bool:
        """Whether an external field induces anything in the model: without, polarizabilities are zero."""
        far = self.potential.long_range
        return far is not None and far.has_response

    @property
    def is_self_consistent(self) -> bool:
        """Whether what is induced feels what else is induced."""
        far = self.potential.long_range
        return far is not None and far.has_response and far.linear_response.mode == "scf"

    @property
    def uses_total_charge(self) -> bool:
        """Whether the model must be told the total charge of every system."""
        return self.potential.long_range is not None and self.potential.long_range.total_charge is not None

    @property
    def receptive_radius(self) -> float:
        """Distance up to which an atom feels others through the features (Å)."""
        return self.potential.receptive_radius

    def add_neighbors(self, batch: AtomicBatch) -> AtomicBatch:
        """Return the batch with the neighbours that the model needs."""
        return self.potential.add_neighbors(batch)

    def multipoles(self, batch: AtomicBatch, *, detach_total: bool = False) -> Multipoles:
        """Latent multipoles that make the polarization, with their graph; times `scale` they are physical.

        Permanent ones and what they induce (`LongRange.moments`); ``potential.multipoles`` gives the permanent alone.
        With this, `receptive_radius`, `add_neighbors` and `atomic_polarizabilities` a model can be given to all of
        `farfield.observables`.

        Raises
        ------
        ValueError
            If the model has no long-range part.
        """
        return self._scaled(batch).multipoles(batch, detach_total=detach_total)

    def atomic_polarizabilities(self, batch: AtomicBatch) -> Tensor:
        """Latent polarizability of each atom (e²·Å²/eV) of a batch with neighbours, with its graph."""
        return self._scaled(batch).atomic_polarizabilities(batch)

    def _scaled(self, batch: AtomicBatch) -> ScaledPotential:
        # Only a field needs the scale for latent multipoles, and with polarizabilities it costs something.
        scale = self.card.gauge_sign * torch.ones(batch.n_systems, dtype=torch.float64, device=batch.pbc.device)
        return ScaledPotential(
            self.potential, self.card.gauge_sign, scale if batch.external_field is None else self.scale(batch)
        )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Model:
        """Move the weights to another device or dtype, in place, and return the model."""
        self.potential.to(device=device, dtype=dtype)
        return self

    # ---- files -------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the model to one safetensors file (``NAME.ff``), which appears whole or not at all.

        Raises
        ------
        FileNotFoundError
            If the folder does not exist.
        ValueError
            If the card holds something that is not JSON.
        """
        header = {
            "farfield": farfield.__version__,
            "dtype": str(self.dtype).removeprefix("torch."),
            "potential": self.potential.config(),
            "card": self.card.to_json(),
        }
        write_model_file(path, self.potential.state_dict(), header)

    @classmethod
    def from_file(cls, path: str | Path) -> Model:
        """Read a model from its file; see `load` for shipped ones.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ModelFileError
            If the file is no farfield model, damaged, or of a newer format.
        """
        tensors, header = read_model_file(path)
        try:
            dtype = getattr(torch, header["dtype"])
            # Fresh weights are drawn only to be replaced: a user's random numbers must not depend on it.
            with torch.random.fork_rng(devices=[]):
                potential = AugmentedPotential.from_config(header["potential"]).to(dtype)
            # `assign` keeps each tensor's dtype as it was written.
            potential.load_state_dict(tensors, assign=True)
            card = ModelCard.from_json(header["card"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise ModelFileError(
                f"{str(path)!r} cannot be rebuilt ({type(error).__name__}: {error}): it is damaged, or needs a "
                "backbone or a version of farfield that is not installed here"
            ) from error
        return cls(potential, card)

    # ---- outputs -----------------------------------------------------------------------------------------------------

    def as_batch(self, structures: Structures, total_charge: float | str | None = None) -> AtomicBatch:
        """Turn structures into a batch in the model's dtype and on its device; check that the model knows them.

        Parameters
        ----------
        structures
            ASE structures, one or a list, or a batch.
        total_charge
            Total charge (e) of ASE structures, or the key of ``atoms.info`` that holds it; by default
            ``info["total_charge"]`` where all structures have it. Where none has one, a model that needs it takes that
            of its training, if all systems of that had the same (`ModelCard.total_charge`).

        Raises
        ------
        ValueError
            If there are no structures, they hold elements the model was not trained on, or the model needs a total
            charge that is not given.
        """
        if isinstance(structures, AtomicBatch):
            batch = structures
        else:
            from ase import Atoms

            listed = [structures] if isinstance(structures, Atoms) else list(structures)
            if not listed:
                raise ValueError("`structures` is empty: give at least one")
            if total_charge is None:
                given = ["total_charge" in atoms.info for atoms in listed]
                if all(given):
                    total_charge = "total_charge"
                elif any(given):
                    raise ValueError(
                        f"info['total_charge'] is given by {sum(given)} of {len(listed)} structures, but must be given "
                        "by all or by none: add it, 0 for neutral ones"
                    )
            batch = from_ase(listed, dtype=self.dtype, total_charge=total_charge)
        if self.uses_total_charge and batch.total_charge is None and self.card.total_charge is not None:
            same = batch.positions.new_full((batch.n_systems,), self.card.total_charge)
            batch = batch.replace(total_charge=same)
        self._check(batch)
        return batch.to(device=self.device, dtype=self.dtype)

    def scale(
        self, batch: AtomicBatch, epsilon_infinity: EpsilonInfinity | None = None, screening: Screening = "derived"
    ) -> Float[Tensor, " systems"]:
        """Give physical over latent multipoles, gauge sign times √ε_e, shape (systems,), float64.

        ε_e is 1 for open systems; models made with the library ``les`` have one for all. For 3D-periodic ones it is ε∞,
        less what the model's own polarizability makes of it (`farfield.observables.effective_epsilon`, with its
        ``screening``), so that it is 1 where that is ``"explicit"``, all of it; slabs and wires take only a number
        given here.
        """
        check_epsilon_infinity(epsilon_infinity)
        epsilon = torch.ones(batch.n_systems, dtype=torch.float64, device=batch.pbc.device)
        if self._is_explicit(epsilon_infinity):
            return self.card.gauge_sign * epsilon
        known = epsilon_infinity is not None
        if epsilon_infinity is not None:
            epsilon = torch.where(batch.pbc.any(dim=1), float(epsilon_infinity), epsilon)
        elif self._epsilon_everywhere is not None:
            epsilon = torch.full_like(epsilon, self._epsilon_everywhere)
        elif self.card.epsilon_infinity is not None:
            known = True
            epsilon = torch.where(batch.pbc.all(dim=1), float(self.card.epsilon_infinity), epsilon)
        if known and self.is_polarizable and bool(batch.pbc.all(dim=1).any()):
            epsilon = self._effective_epsilon(batch, epsilon, screening)
        return self.card.gauge_sign * epsilon.sqrt()

    def _is_explicit(self, epsilon_infinity: EpsilonInfinity | None) -> bool:
        """Whether the model's own response makes all of ε∞, by what is given or else by its card."""
        far, given = self.potential.long_range, epsilon_infinity is not None
        if not isinstance(epsilon_infinity if given else self.card.epsilon_infinity, str):
            return False
        if given and not (self.is_self_consistent and far is not None and far.polarizability is not None):
            raise ValueError(
                "`epsilon_infinity` is 'explicit', but only induced dipoles that feel each other (induced_dipoles, "
                "response='scf') can make all of ε∞, and the model has none: give a number"
            )
        return True

    @property
    def _epsilon_everywhere(self) -> float | None:
        """ε of all systems, where the model was made so and nothing else stands in its card."""
        far = self.potential.long_range
        return None if far is None or self.card.epsilon_infinity is not None else far.epsilon_everywhere

    def _effective_epsilon(self, batch: AtomicBatch, epsilon: Tensor, screening: Screening) -> Tensor:
        ready = with_neighbors(self.potential, batch)
        return screened_epsilon(self.potential, ready, epsilon, self.card.gauge_sign, screening)

    def screening(self, batch: AtomicBatch, epsilon_infinity: EpsilonInfinity | None = None) -> list[str]:
        """Say of each system how its charges are to be read.

        ``"vacuum"``; ``"epsilon_infinity=…"``; ``"explicit"``: of a periodic system whose screening the model's own
        response makes; or ``"latent"``: the model learned q/√ε∞ of a periodic system and nobody said what ε∞ is.
        """
        if self._is_explicit(epsilon_infinity):
            return ["explicit" if any(periodic) else "vacuum" for periodic in batch.pbc.tolist()]
        everywhere = self._epsilon_everywhere
        if epsilon_infinity is None and everywhere is not None and everywhere != 1.0:
            return [f"epsilon_infinity={everywhere:g}"] * batch.n_systems
        labels = []
        for periodic in batch.pbc.tolist():
            known = (
                epsilon_infinity if epsilon_infinity is not None or not all(periodic) else self.card.epsilon_infinity
            )
            if not any(periodic):
                labels.append("vacuum")
            else:
                labels.append("latent" if known is None else f"epsilon_infinity={known:g}")
        return labels

    def compute(
        self,
        structures: Structures,
        properties: Sequence[str] = ("energy", "forces"),
        *,
        total_charge: float | str | None = None,
        epsilon_infinity: EpsilonInfinity | None = None,
        harmonics: int | None = None,
        fit: Literal["flat", "radius"] = "radius",
        mean: Mean | None = None,
        sum_rule: bool = False,
        exact: bool = False,
        origin: Literal["zero", "centre"] = "zero",
        external_field: Tensor | np.ndarray | Sequence[float] | None = None,
        screening: Screening = "derived",
        allow_unstable: bool = False,
        max_atoms: int = 2000,
        as_tensors: bool = False,
    ) -> dict[str, Any]:
        """Compute properties of any number of structures.

        Parameters
        ----------
        structures
            ASE structures, one or a list, or a batch.
        properties
            Names out of `PROPERTIES`: energy (systems,), forces (atoms, 3), stress (systems, 3, 3; NaN without three
            periodic axes), short_range_energy and long_range_energy (systems,); permanent charges (atoms,),
            atomic_dipoles, atomic_quadrupoles, and induced_charges, induced_dipoles; potential (V) and field (V/Å) of
            the permanent multipoles at the atoms; dipole (systems, 3), quadrupole (systems, 3, 3), polarization
            (systems, 3) and born_charges (atoms, 3, 3; first index polarization) of all of them; polarizability
            (systems, 3, 3) and atomic_polarizabilities (atoms, 3, 3) in Å³; chi, k_d (1/Å) and epsilon_e (systems,),
            see `farfield.observables.stability` and `effective_epsilon`; the latent multipoles as the Coulomb sum
            takes them; field_forces (atoms, 3), the part of the forces that a field adds along periodic directions as
            F·Z* of the charges, derivatives of no energy. Units eV, Å, e where no other is said.
        total_charge
            As in `as_batch`.
        epsilon_infinity
            ε of periodic systems, instead of the card's; ``"explicit"`` as there.
        harmonics, fit, mean, sum_rule, exact
            As in `farfield.observables.born_charges`; what is ``exact`` repeats periodic cells. Where not given, models
            made with the library ``les`` take one harmonic, as their authors do; all others the defaults there.
        origin
            As in `farfield.observables.dipole_moment`.
        external_field
            Uniform field (V/Å), one for all systems or one each: applied along open directions, macroscopic along
            periodic ones. By default that of the batch, if it has one. Along periodic directions the energy has no
            part of the charges in the field, and their forces are F·Z*; there is no stress in a field.
        screening
            As in `scale`.
        allow_unstable
            Compute even where one-shot response is unstable in long waves (`farfield.observables.check_stability`).
        max_atoms
            Structures are computed in chunks of at most so many atoms (one larger structure is a chunk of its own).
        as_tensors
            Return tensors instead of NumPy arrays.

        Returns
        -------
        dict
            The properties by name, structures laid end to end; and ``"screening"``, one label per system (see
            `screening`), if a property depends on it.

        Raises
        ------
        ValueError
            If a property is unknown, or the model has no charges; for a field of the wrong shape, or a stress in a
            field; for one-shot response that is unstable in long waves; for ``exact`` where the total charge of a
            periodic system is an input of the model; or as `as_batch`.
        """
        if isinstance(properties, str):
            properties = (properties,)
        for name in properties:
            if name not in PROPERTIES:
                raise ValueError(f"Unknown property {name!r}. Must be one of {', '.join(PROPERTIES)}")
            if name not in ENERGETIC and not self.is_long_range:
                raise ValueError(f"{name!r} needs charges, but this model has no long-range part")
        batch = self._in_field(self.as_batch(structures, total_charge), external_field)
        born = self._born_options(batch, {"harmonics": harmonics, "fit": fit, "mean": mean, "exact": exact})
        found: dict[str, list[Tensor]] = {name: [] for name in properties}
        for part in chunks(batch, max_atoms):
            chunk = with_neighbors(self.potential, part)
            response = self._response(chunk, properties, allow_unstable)
            scale = self.scale(chunk, epsilon_infinity, screening)
            scaled = ScaledPotential(self.potential, self.card.gauge_sign, scale)
            values = scaled.outputs(
                chunk,
                properties,
                response,
                origin=origin,
                sum_rule=sum_rule,
                born=born,
            )
            for name in properties:
                found[name].append(values[name].detach())
        joined = {name: torch.cat(parts) for name, parts in found.items()}
        result: dict[str, Any] = dict(joined)
        if not as_tensors:
            result = {name: tensor.cpu().numpy() for name, tensor in joined.items()}
        if set(properties) & _SCALED:
            result["screening"] = self.screening(batch, epsilon_infinity)
        return result

    def forces_in_field(
        self,
        structures: Structures,
        field: Tensor | Sequence[float],
        *,
        total_charge: float | str | None = None,
        **options: Any,
    ) -> Float[Tensor, "atoms 3"]:
        """Compute the forces that a uniform field (V/Å) adds, f = F·Z* (eV/Å), shape (atoms, 3).

        ``options`` are ``epsilon_infinity`` and those of `farfield.observables.forces_in_field`.
        """
        batch = self.potential.add_neighbors(self.as_batch(structures, total_charge))
        scale = self.scale(batch, options.pop("epsilon_infinity", None))
        options = self._born_options(batch, options)
        return forces_in_field(self, batch, torch.as_tensor(field), scale=scale, **options).detach()

    def _check_repeatable(self, batch: AtomicBatch) -> None:
        """Refuse to repeat charged cells where atoms feel the total charge: that of a supercell is another one."""
        far = self.potential.long_range
        if far is None or far.total_charge != "feature" or batch.total_charge is None:
            return
        if bool((batch.pbc.any(dim=1) & (batch.total_charge != 0)).any()):
            raise ValueError(
                "`exact` repeats periodic cells, but this model takes the total charge of a system as an input, and "
                "that of a charged supercell is another one: compare a few values of `harmonics` instead"
            )

    def _born_options(self, batch: AtomicBatch, given: Mapping[str, Any]) -> dict[str, Any]:
        """Options of Born charges: those given, else those that the model was made with."""
        if given.get("exact"):
            self._check_repeatable(batch)
        far = self.potential.long_range
        own = {} if far is None else far.born_options
        return {**own, **{name: value for name, value in given.items() if value is not None}}

    def _in_field(self, batch: AtomicBatch, field: Tensor | np.ndarray | Sequence[float] | None) -> AtomicBatch:
        if field is None:
            return batch
        given = torch.as_tensor(field).to(batch.positions)
        if given.shape not in ((3,), (batch.n_systems, 3)):
            raise ValueError(
                f"`external_field` has shape {tuple(given.shape)} but must be (3,) or ({batch.n_systems}, 3), in V/Å"
            )
        if not bool(torch.isfinite(given).all()):
            raise ValueError("`external_field` must be finite (V/Å)")
        return batch.replace(external_field=given.expand(batch.n_systems, 3))

    def _response(self, chunk: AtomicBatch, properties: Sequence[str], allow_unstable: bool) -> Response | None:
        """Latent response of a chunk where it is reported or has to be checked; refused where it is unstable."""
        far = self.potential.long_range
        if far is None or not far.has_response:
            return None
        doubtful = far.linear_response.mode == "one-shot" and not allow_unstable and bool(chunk.pbc.all(dim=1).any())
        if not doubtful and not set(properties) & set(RESPONSE):
            return None
        with torch.no_grad():
            response = self.potential.response(chunk)
        if doubtful and response is not None:
            check_stability(chunk, response)
        return response

    def _check(self, batch: AtomicBatch) -> None:
        if batch.n_systems == 0:
            raise ValueError("`structures` is empty: give at least one")
        if self.card.elements:
            known = torch.tensor(self.card.elements, device=batch.numbers.device)
            strange = batch.numbers[~torch.isin(batch.numbers, known)]
            if len(strange):
                raise ValueError(
                    f"the model {self.card.name!r} does not know {_symbols(strange.unique().tolist())}: it was trained "
                    f"on {_symbols(self.card.elements)} only"
                )
        if self.uses_total_charge and batch.total_charge is None:
            raise ValueError(
                f"the model {self.card.name!r} needs the total charge of every system: set atoms.info['total_charge'] "
                "(e), or pass `total_charge`"
            )


def _symbols(numbers: Iterable[int]) -> str:
    from ase.data import chemical_symbols

    return ", ".join(chemical_symbols[number] for number in sorted(numbers))
