"""Born charges of structures, written to extended XYZ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from farfield.atoms.structures import read_structures
from farfield.datasets.registry import resolve_data
from farfield.files import replacing

if TYPE_CHECKING:
    from ase import Atoms

    from farfield.model import Model


def write_born_charges(
    model: Model | str | Path,
    data: str | Path,
    output: str | Path,
    *,
    order: Literal["displacement-first", "polarization-first"] = "displacement-first",
    options: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Atoms]:
    """Compute charges and Born charges and write them beside the structures, all of the file or nothing.

    The file has the arrays ``bec`` (nine numbers, e) and ``charges`` (e), and in ``info`` what they are: the index
    order (``bec_order``), the screening (``screening``: vacuum, ε∞, or latent) and how far the sum of the Born charges
    is from the total charge (``bec_sum_rule``, largest component of the mean excess, e). Labels of the input are not
    copied.

    Parameters
    ----------
    model
        A model, the name of a shipped one, or a path.
    data
        Registry name or path of the structures.
    output
        File to write; its name must end in ``.extxyz`` or ``.xyz``.
    order
        Which index of the nine numbers stands first: nine in row order of [displacement, polarization] as in the shared
        files, so that ``farfield evaluate`` reads them as they are, or of [polarization, displacement].
    options
        Further keyword arguments of `Model.compute`.
    progress
        Called with the number of structures done and of all.

    Returns
    -------
    list of ase.Atoms
        What was written.

    Raises
    ------
    FileNotFoundError, ValueError
        If something cannot be read, or the model has no charges or does not know an element.
    """
    from ase import Atoms
    from ase.io import write

    from farfield.model import load

    output = Path(output)
    if output.suffix not in (".extxyz", ".xyz"):
        raise ValueError(f"`output` is {str(output)!r} but must end in .extxyz: extended XYZ is what is written")
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(output.parent)!r} to write {output.name!r} into")
    if isinstance(model, str | Path):
        model = load(model)
    structures = read_structures(resolve_data(data))
    written = []
    for count, atoms in enumerate(structures, start=1):
        values = model.compute(atoms, ["charges", "born_charges"], **(options or {}))
        born = np.asarray(values["born_charges"], dtype=np.float64)
        bare = Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        bare.arrays["charges"] = np.asarray(values["charges"], dtype=np.float64)
        bare.arrays["bec"] = (np.swapaxes(born, 1, 2) if order == "displacement-first" else born).reshape(-1, 9)
        bare.info["bec_order"] = order
        bare.info["screening"] = values["screening"][0]
        total = float(atoms.info.get("total_charge", 0.0))
        bare.info["bec_sum_rule"] = float(np.abs(born.mean(axis=0) - total / len(born) * np.eye(3)).max())
        if "total_charge" in atoms.info:
            bare.info["total_charge"] = total
        written.append(bare)
        if progress is not None:
            progress(count, len(structures))

    with replacing(output) as temporary:
        write(temporary, written, format="extxyz")
    return written
