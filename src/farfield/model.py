"""The face of a trained model: load, save, card, and every output with its physical sign and scale."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

import farfield
from farfield import zoo
from farfield.atoms.batch import AtomicBatch
from farfield.atoms.chunks import chunks
from farfield.atoms.structures import from_ase
from farfield.card import ModelCard
from farfield.electrostatics.multipoles import Multipoles
from farfield.model_file import ModelFileError, read_model_file, write_model_file
from farfield.observables.born import DEFAULT_HARMONICS, born_charges, forces_in_field
from farfield.observables.moments import dipole_moment, physical, quadrupole_moment, with_neighbors
from farfield.potentials.augmented import AugmentedPotential

if TYPE_CHECKING:
    from ase import Atoms

    Structures = AtomicBatch | Atoms | Sequence[Atoms]

_ENERGETIC = ("energy", "forces", "stress", "short_range_energy", "long_range_energy")
_MOMENTS = (
    "charges",
    "atomic_dipoles",
    "atomic_quadrupoles",
    "latent_charges",
    "latent_dipoles",
    "latent_quadrupoles",
    "dipole",
    "quadrupole",
    "polarization",
)
_BORN = ("born_charges", "born_effective_charges")
#: Names that `Model.compute` knows.
PROPERTIES = (*_ENERGETIC, *_MOMENTS, *_BORN)


def load(name: str | Path, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Model:
    """Load a model from a file, or a shipped one by its name.

    Parameters
    ----------
    name
        Path of a ``.ff`` file, or the name of a shipped model (``farfield.zoo.names()``). A file goes first.
    device, dtype
        Where and in which precision to compute, if not on the CPU and as saved.

    Raises
    ------
    FileNotFoundError
        If ``name`` is a path, and there is no such file.
    ValueError
        If it is the name of no shipped model; the error lists those there are.
    ModelFileError
        If the file is no farfield model, damaged, or of a newer format.
    """
    path = Path(name)
    if not path.exists():
        if path.suffix or len(path.parts) > 1:
            raise FileNotFoundError(
                f"there is no model file {str(name)!r}. Give the path of a .ff file, or the name of a shipped model: "
                f"{', '.join(zoo.names()) or 'none'}"
            )
        path = zoo.path(str(name))
    return Model.from_file(path).to(device=device, dtype=dtype)


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
        """Latent multipoles of a batch with neighbours, with their graph; times `scale` they are physical.

        With this, `receptive_radius` and `add_neighbors` a model can be given to all of `farfield.observables`.

        Raises
        ------
        ValueError
            If the model has no long-range part.
        """
        return self.potential.multipoles(
            _in_gauge(self.potential, batch, self.card.gauge_sign), detach_total=detach_total
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
            ``info["total_charge"]`` where all structures have it.

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
        self._check(batch)
        return batch.to(device=self.device, dtype=self.dtype)

    def scale(self, batch: AtomicBatch, epsilon_infinity: float | None = None) -> Float[Tensor, " systems"]:
        """Give physical over latent multipoles, gauge sign times √ε_e, shape (systems,), float64.

        ε_e is 1 for open systems, ε∞ for 3D-periodic ones; slabs and wires take only an ε given here.
        """
        epsilon = torch.ones(batch.n_systems, dtype=torch.float64, device=batch.pbc.device)
        if epsilon_infinity is not None:
            if not epsilon_infinity > 0:
                raise ValueError(f"`epsilon_infinity` is {epsilon_infinity!r} but must be positive (1 for vacuum)")
            epsilon = torch.where(batch.pbc.any(dim=1), float(epsilon_infinity), epsilon)
        elif self.card.epsilon_infinity is not None:
            epsilon = torch.where(batch.pbc.all(dim=1), float(self.card.epsilon_infinity), epsilon)
        return self.card.gauge_sign * epsilon.sqrt()

    def screening(self, batch: AtomicBatch, epsilon_infinity: float | None = None) -> list[str]:
        """Say of each system how its charges are to be read: ``"vacuum"``, ``"epsilon_infinity=…"`` or ``"latent"``.

        Latent means that the model learned q/√ε∞ of a periodic system and nobody said what ε∞ is.
        """
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
        epsilon_infinity: float | None = None,
        harmonics: int = DEFAULT_HARMONICS,
        fit: Literal["flat", "radius"] = "radius",
        mean: Literal["detached", "attached"] = "detached",
        sum_rule: bool = False,
        origin: Literal["zero", "centre"] = "zero",
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
            periodic axes), short_range_energy and long_range_energy (systems,), charges (atoms,), atomic_dipoles,
            atomic_quadrupoles, dipole (systems, 3), quadrupole (systems, 3, 3), polarization (systems, 3), born_charges
            (atoms, 3, 3; first index polarization), and the latent multipoles as the Coulomb sum takes them; eV, Å, e.
        total_charge
            As in `as_batch`.
        epsilon_infinity
            ε of periodic systems, instead of the card's.
        harmonics, fit, mean, sum_rule
            As in `farfield.observables.born_charges`.
        origin
            As in `farfield.observables.dipole_moment`.
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
            If a property is unknown, or the model has no charges, or as `as_batch`.
        """
        if isinstance(properties, str):
            properties = (properties,)
        for name in properties:
            if name not in PROPERTIES:
                raise ValueError(f"Unknown property {name!r}. Must be one of {', '.join(PROPERTIES)}")
            if name not in _ENERGETIC and not self.is_long_range:
                raise ValueError(f"{name!r} needs charges, but this model has no long-range part")
        batch = self.as_batch(structures, total_charge)
        found: dict[str, list[Tensor]] = {name: [] for name in properties}
        for part in chunks(batch, max_atoms):
            chunk = with_neighbors(self.potential, part)
            scale = self.scale(chunk, epsilon_infinity)
            values = self._energies_and_moments(chunk, properties, scale, origin)
            for name in set(properties) & set(_BORN):
                values[name] = born_charges(
                    self, chunk, harmonics=harmonics, fit=fit, mean=mean, scale=scale, sum_rule=sum_rule
                )
            for name in properties:
                found[name].append(values[name].detach())
        joined = {name: torch.cat(parts) for name, parts in found.items()}
        result: dict[str, Any] = dict(joined)
        if not as_tensors:
            result = {name: tensor.cpu().numpy() for name, tensor in joined.items()}
        if any(name in _MOMENTS + _BORN and not name.startswith("latent") for name in properties):
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
        return forces_in_field(self, batch, torch.as_tensor(field), scale=scale, **options).detach()

    def _energies_and_moments(
        self, chunk: AtomicBatch, properties: Sequence[str], scale: Tensor, origin: Literal["zero", "centre"]
    ) -> dict[str, Any]:
        values: dict[str, Any] = {}
        multipoles = None
        if set(properties) & set(_ENERGETIC):
            # Without derivatives `predict` builds a graph only if asked to.
            with torch.no_grad():
                prediction = self.potential.predict(
                    _in_gauge(self.potential, chunk, self.card.gauge_sign),
                    forces="forces" in properties,
                    stress="stress" in properties,
                )
            values = {name: getattr(prediction, name) for name in _ENERGETIC}
            multipoles = prediction.multipoles
        if not set(properties) & set(_MOMENTS):
            return values
        with torch.no_grad():
            latent = multipoles or self.multipoles(chunk)
            values |= _moments(chunk, properties, latent, physical(chunk, latent, scale), origin)
        return values

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


def _in_gauge(potential: AugmentedPotential, batch: AtomicBatch, sign: int) -> AtomicBatch:
    """Latent charges add up to the total charge times the gauge sign, where the model is constrained."""
    constrained = potential.long_range is not None and potential.long_range.total_charge == "constraint"
    if sign == 1 or not constrained or batch.total_charge is None:
        return batch
    return batch.replace(total_charge=-batch.total_charge)


def _moments(
    chunk: AtomicBatch,
    properties: Sequence[str],
    latent: Multipoles,
    real: Multipoles,
    origin: Literal["zero", "centre"],
) -> dict[str, Tensor]:
    zero = chunk.positions.new_zeros

    def filled(values: Tensor | None, *shape: int) -> Tensor:
        return zero((chunk.n_atoms, *shape)) if values is None else values

    values = {
        "charges": real.charges,
        "atomic_dipoles": filled(real.dipoles, 3),
        "atomic_quadrupoles": filled(real.quadrupoles, 3, 3),
        "latent_charges": latent.charges,
        "latent_dipoles": filled(latent.dipoles, 3),
        "latent_quadrupoles": filled(latent.quadrupoles, 3, 3),
    }
    if "dipole" in properties:
        values["dipole"] = dipole_moment(chunk, real, origin=origin)
    if "polarization" in properties:
        values["polarization"] = dipole_moment(chunk, real)
    if "quadrupole" in properties:
        values["quadrupole"] = quadrupole_moment(chunk, real)
    return values


def _symbols(numbers: Iterable[int]) -> str:
    from ase.data import chemical_symbols

    return ", ".join(chemical_symbols[number] for number in sorted(numbers))
