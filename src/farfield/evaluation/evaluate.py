"""Compare a model with every label that some structures have.

Reference energies and the sign gauge are those stored in the model; nothing is fitted to the evaluated data.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch

from farfield.atoms.batch import AtomicBatch, concatenate
from farfield.datasets.dataset import Dataset, Sample
from farfield.datasets.fragments import join_fragments
from farfield.datasets.quantities import INTERACTIONS, Columns, Conventions, Units
from farfield.evaluation.comparison import QUANTITIES, Comparison
from farfield.evaluation.labels import QuadrupoleOrigin, check_born_order, check_scale
from farfield.evaluation.pairing import check_origin, compare
from farfield.evaluation.reading import read_labelled
from farfield.files import write_text

if TYPE_CHECKING:
    from ase import Atoms

#: What the model is asked for, of the whole and of its fragments, to compare interactions.
_OF_WHOLE = dict(zip(INTERACTIONS, ("energy", "forces"), strict=True))

#: Quantities that need latent charges.
_ELECTRIC = ("dipole", "quadrupole", "charges", "born_charges", "polarizability")


@runtime_checkable
class Computes(Protocol):
    """What the evaluation needs of a model: `farfield.model.Model` is one."""

    def compute(self, batch: AtomicBatch, properties: Sequence[str]) -> dict[str, Any]:
        """Return the properties of a batch by name."""
        ...


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Result of `evaluate`.

    Attributes
    ----------
    model, data
        What was evaluated on what, as it was named.
    n_systems, n_atoms
        Size of the data.
    comparisons
        Predictions beside labels, by key of `QUANTITIES`.
    formulas
        Chemical formula of each structure.
    notes
        What a reader of the numbers should know: labels left out, conventions that look wrong, warnings of the model.
    card
        The model's card.
    """

    model: str
    data: str
    n_systems: int
    n_atoms: int
    comparisons: dict[str, Comparison]
    formulas: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    card: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return ``{"model", "data", "n_systems", "metrics"}``, ready for JSON."""
        return {
            "model": self.model,
            "data": self.data,
            "n_systems": self.n_systems,
            "metrics": {key: comparison.metrics.as_dict() for key, comparison in self.comparisons.items()},
        }

    def write_json(self, path: str | Path) -> None:
        """Write `as_dict` to a file, all of it or nothing."""
        write_text(path, json.dumps(self.as_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def evaluate(
    model: Computes | str | Path,
    data: str | Path | Sequence[Atoms] | Dataset,
    *,
    columns: Columns | None = None,
    units: Units | None = None,
    born_order: Literal["displacement-first", "polarization-first"] = "displacement-first",
    stress_sign: Literal["tensile", "compressive"] = "tensile",
    quadrupole_origin: QuadrupoleOrigin = "centre",
    total_charge: str | None = "auto",
    first: int | None = None,
    last: int | None = None,
    quantities: Sequence[str] | None = None,
    atoms_per_batch: int = 512,
    options: dict[str, Any] | None = None,
    name: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Compare a model with every label that the data have.

    Units of the metrics are those of `QUANTITIES`. Metrics pool Cartesian components (all nine of a stress, a Born
    charge or a polarizability, which is in Å³). Quadrupoles are compared by their six upper components, traceless
    without the factor 3/2, about the geometric centre. Dipoles and quadrupoles are compared for open systems only: in a
    periodic cell they are known up to a quantum. Interaction energies and forces are those of the whole less those of
    its fragments, each predicted alone (`farfield.datasets.fragments`).

    Parameters
    ----------
    model
        A model, the name of a shipped one, or a path.
    data
        Registry name, path, ASE structures, or a `Dataset` (whose columns and units are settled already).
    columns, units
        Names and units of the labels; by default those of the shared files.
    born_order
        Which index of the Born-charge labels stands first.
    stress_sign
        ``"tensile"`` is ASE's sign, positive under tension.
    quadrupole_origin
        What raw second-moment labels are counted from: the geometric ``"centre"``, the centre of ``"mass"``, or
        ``"zero"`` of the coordinates; others than the first are carried over to the geometric centre with the dipole
        label. With ``"unknown"`` the origin of each label is fitted (`best_shift`; neutral systems), which leaves two
        of five components to be predicted: a comparison that does not depend on it where the coordinates were shifted
        after the calculation, as in the dipeptides.
    total_charge, first, last
        As in `read_labelled`; for a `Dataset` they are settled already.
    quantities
        Keys of `QUANTITIES` to compare; by default all.
    atoms_per_batch
        Largest number of atoms computed at once (one system at least).
    options
        Further keyword arguments of ``model.compute``.
    name
        What to call the model in the result.
    progress
        Called with the number of systems done and of all.

    Returns
    -------
    Evaluation

    Raises
    ------
    FileNotFoundError, ValueError
        If model or data cannot be read, an option is not one of those above, or the data have no label to compare.

    Warns
    -----
    UserWarning
        Once for each of `Evaluation.notes`: labels that are left out or seem to follow another
        convention, and warnings of the model.
    """
    unknown = sorted(set(quantities or ()) - set(QUANTITIES))
    if unknown:
        raise ValueError(f"`quantities` has {unknown}, but each must be one of {list(QUANTITIES)}")
    if isinstance(model, str | Path):
        from farfield.model import load

        name = name or str(model)
        model = load(model)
    if not isinstance(data, Dataset):
        conventions = Conventions(born_charges=born_order, stress=stress_sign)
        data = read_labelled(
            data,
            columns=columns,
            units=units,
            conventions=conventions,
            total_charge=total_charge,
            first=first,
            last=last,
            fragments=quantities is None or bool(set(quantities) & set(INTERACTIONS)),
        )

    notes: list[str] = []
    wanted = _usable(model, data, list(quantities or QUANTITIES), notes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows = _predict(model, data, wanted, quadrupole_origin, atoms_per_batch, options or {}, progress, notes)
    comparisons = {key: _stack(key, rows[key]) for key in QUANTITIES if rows.get(key)}
    if not comparisons:
        raise ValueError(f"{data.name}: nothing to compare. {' '.join(notes)}")

    notes += dict.fromkeys(str(warning.message) for warning in caught)
    for key, comparison in comparisons.items():
        special = None
        if key == "born_charges":
            special = check_born_order(comparison)
        elif key == "quadrupole" and quadrupole_origin == "centre":
            special = check_origin(comparison, data)
        notes += [note for note in (check_scale(comparison), special) if note]
    for note in notes:
        warnings.warn(note, UserWarning, stacklevel=2)
    return Evaluation(
        model=name or type(model).__name__,
        data=data.name,
        n_systems=len(data),
        n_atoms=sum(sample.batch.n_atoms for sample in data),
        comparisons=comparisons,
        formulas=[_formula(sample) for sample in data],
        notes=notes,
        card=_card(model),
    )


#: Why labels are left out, and what there is to say of some that are not, by what `_judged` calls it.
_NOTES = {
    "unanswered": "the model has no response, so {} polarizability labels are left out",
    "partly periodic": "{} polarizability labels of slabs or wires are left out: no label says whether the field along "
    "their open axes is the macroscopic one or the one applied",
    "quanta": "{} dipole or quadrupole labels of periodic systems are left out: they are known up to a quantum",
    "open stress": "{} stress labels of systems that are not periodic along all axes are left out",
    "one-shot": "{} polarizabilities of bulk are those of one-shot response, where dipoles do not feel each other: "
    "with the right energies of long waves it has 1 − 1/ε∞ where labels have ε∞ − 1; response='scf' has no such limit",
}


def _judged(model: Computes, key: str, pbc: torch.Tensor) -> tuple[bool, str | None]:
    """Whether a label of a system with this periodicity can be compared, and what of `_NOTES` there is to say of it."""
    bulk, periodic = bool(pbc.all()), bool(pbc.any())
    if key in ("dipole", "quadrupole") and periodic:
        return False, "quanta"
    if key == "stress" and not bulk:
        return False, "open stress"
    if key != "polarizability":
        return True, None
    if not bool(getattr(model, "is_polarizable", True)):
        return False, "unanswered"
    if periodic and not bulk:
        return False, "partly periodic"
    return True, "one-shot" if bulk and not bool(getattr(model, "is_self_consistent", True)) else None


def _usable(model: Computes, data: Dataset, keys: list[str], notes: list[str]) -> list[set[str]]:
    """For each system, the keys that it can be compared by; what there is to say of the others goes to the notes."""
    charged = _has_charges(model)
    silent: set[str] = set()
    said: Counter[str] = Counter()
    wanted = []
    for sample in data:
        here = set()
        for key in keys:
            if QUANTITIES[key].label not in sample.labels:
                continue
            if key in _ELECTRIC and not charged:
                silent.add(key)
                continue
            compared, note = _judged(model, key, sample.batch.pbc)
            if compared:
                here.add(key)
            if note is not None:
                said[note] += 1
        wanted.append(here)
    if silent:
        notes.append(f"the model has no charges, so the labels {sorted(silent)} are left out")
    notes += [text.format(said[name]) for name, text in _NOTES.items() if said[name]]
    if not any(wanted) and not notes:
        notes.append(
            "The data have none of the labels that are looked for: map their names with `columns` (--column). "
            f"Defaults: {Columns().model_dump()}"
        )
    return wanted


def _has_charges(model: Computes) -> bool:
    return bool(getattr(model, "is_long_range", True))


def _groups(data: Dataset, wanted: list[set[str]], atoms_per_batch: int) -> Iterator[list[int]]:
    """Yield runs of systems that want the same properties, up to a number of atoms."""
    group: list[int] = []
    size = 0
    for index, sample in enumerate(data):
        if not wanted[index]:
            continue
        count = sample.batch.n_atoms
        mixed = group and (
            wanted[group[0]] != wanted[index]
            or (data[group[0]].batch.total_charge is None) != (sample.batch.total_charge is None)
        )
        if group and (size + count > atoms_per_batch or mixed):
            yield group
            group, size = [], 0
        group.append(index)
        size += count
    if group:
        yield group


def _predict(
    model: Computes,
    data: Dataset,
    wanted: list[set[str]],
    origin: QuadrupoleOrigin,
    atoms_per_batch: int,
    options: dict[str, Any],
    progress: Callable[[int, int], None] | None,
    notes: list[str],
) -> dict[str, list[Comparison]]:
    rows: dict[str, list[Comparison]] = {}
    latent, rests = 0, []
    for group in _groups(data, wanted, atoms_per_batch):
        keys = [key for key in QUANTITIES if key in wanted[group[0]]]
        samples = [data[index] for index in group]
        # The model makes its own neighbour lists, at its own cutoff.
        batch = concatenate([dataclasses.replace(sample.batch, neighbors=None) for sample in samples])
        properties = list(dict.fromkeys(_OF_WHOLE.get(key, QUANTITIES[key].label) for key in keys))
        if "polarizability" in keys and bool(getattr(model, "is_self_consistent", False)):
            properties.append("epsilon_e")
        output = dict(model.compute(batch, properties=properties, **options))
        output |= _interactions(model, samples, output, [key for key in keys if key in _OF_WHOLE], options)
        latent += list(output.get("screening", ())).count("latent")
        if "epsilon_e" in output:
            rests += torch.as_tensor(output["epsilon_e"])[batch.pbc.all(dim=1)].tolist()
        counts = [sample.batch.n_atoms for sample in samples]
        for key in keys:
            values = torch.as_tensor(output[QUANTITIES[key].label]).detach().cpu().double().numpy()
            rows_of = counts if QUANTITIES[key].per_atom else [1] * len(samples)
            parts = np.split(values, np.cumsum(rows_of)[:-1])
            for index, sample, part in zip(group, samples, parts, strict=True):
                rows.setdefault(key, []).append(compare(key, index, sample, part, origin))
        if progress is not None:
            progress(group[-1] + 1, len(data))
    if latent:
        notes.append(
            f"charges and Born charges of {latent} periodic systems are latent, that is physical ones over √ε∞, and "
            "polarizabilities those of the model's own response, because nobody said what ε∞ is: give it "
            "(--epsilon-infinity)"
        )
    if any(abs(rest - 1.0) > 0.01 for rest in rests):
        notes.append(
            f"polarizabilities of {len(rests)} periodic systems are what the model's own response makes of ε∞; labels "
            f"have V (ε_e − 1)/4π more, with the ε_e that it leaves for its charges, {np.mean(rests):.3g} in the mean"
        )
    return rows


def _interactions(
    model: Computes, samples: list[Sample], whole: dict[str, Any], keys: list[str], options: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """Subtract from the energies and forces of whole systems those of their fragments, each computed alone."""
    parts = join_fragments([(sample.batch, sample.fragments) for sample in samples]) if keys else None
    if parts is None:
        return {}
    alone = model.compute(
        dataclasses.replace(parts.batch, neighbors=None), properties=[_OF_WHOLE[key] for key in keys], **options
    )
    found = {}
    for key in keys:
        together, apart = (torch.as_tensor(output[_OF_WHOLE[key]]).detach().cpu() for output in (whole, alone))
        found[key] = parts.subtracted(together, apart, per_atom=QUANTITIES[key].per_atom)
    return found


def _stack(key: str, parts: list[Comparison]) -> Comparison:
    return Comparison(
        key,
        np.concatenate([part.predicted for part in parts]),
        np.concatenate([part.reference for part in parts]),
        np.concatenate([part.system for part in parts]),
        np.concatenate([part.numbers for part in parts]),
    )


def _formula(sample: Sample) -> str:
    from ase.formula import Formula
    from ase.symbols import Symbols

    return Formula(str(Symbols(sample.batch.numbers.numpy()))).format("hill")


def _card(model: Computes) -> dict[str, Any]:
    """Return the model's card as plain values; a model without one is evaluated as well."""
    card = getattr(model, "card", None)
    return {} if card is None else card.to_json()
