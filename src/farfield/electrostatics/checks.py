"""What the solver refuses, and why: checks of shapes (every call) and of values (once, in preparation)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.electrostatics.multipoles import Multipoles

#: A periodic cell is degenerate when its volume is below this fraction of the product of its vectors' lengths.
_FLATTEST_CELL = 1e-3

_AXES = ("a", "b", "c")
_FLOATS = (torch.float32, torch.float64)


def check_batch_shapes(batch: AtomicBatch) -> None:
    """Refuse a batch whose tensors do not fit together.

    Raises
    ------
    ValueError
        For a wrong shape.
    TypeError
        For a dtype other than float32 or float64, or a cell of another dtype than the positions.
    """
    positions, cell, pbc, system = batch.positions, batch.cell, batch.pbc, batch.system
    if positions.ndim != 2 or positions.shape[1] != 3:
        raise ValueError(f"`positions` has the shape {tuple(positions.shape)} but must be (atoms, 3)")
    if cell.ndim != 3 or cell.shape[1:] != (3, 3):
        raise ValueError(f"`cell` has the shape {tuple(cell.shape)} but must be (systems, 3, 3), cell vectors as rows")
    if pbc.shape != (cell.shape[0], 3):
        raise ValueError(
            f"`pbc` has the shape {tuple(pbc.shape)} but must be (systems, 3) = {(cell.shape[0], 3)}, as `cell` has "
            f"{cell.shape[0]} systems"
        )
    if system.shape != (positions.shape[0],):
        raise ValueError(
            f"`system` has the shape {tuple(system.shape)} but must be (atoms,) = {(positions.shape[0],)}, one index "
            "for each row of `positions`"
        )
    if positions.dtype not in _FLOATS:
        raise TypeError(f"`positions` has the dtype {positions.dtype} but must be float32 or float64")
    if cell.dtype != positions.dtype:
        raise TypeError(f"`cell` has the dtype {cell.dtype} but must have that of `positions`, {positions.dtype}")
    if pbc.dtype != torch.bool:
        raise TypeError(f"`pbc` has the dtype {pbc.dtype} but must be bool")
    if system.dtype != torch.int64:
        raise TypeError(f"`system` has the dtype {system.dtype} but must be int64")


def check_batch_values(batch: AtomicBatch) -> None:
    """Refuse positions and cells that make no sense. Synchronizes the device.

    Raises
    ------
    ValueError
        For positions or cells that are not finite, a system index out of range or not ascending, a zero vector on a
        periodic axis, periodic vectors that depend on each other.
    """
    check_positions(batch)
    if batch.n_atoms:
        first, last = int(batch.system[0]), int(batch.system[-1])
        if bool((batch.system[1:] < batch.system[:-1]).any()) or first < 0 or last >= batch.n_systems:
            raise ValueError(
                f"`system` must ascend from 0 to {batch.n_systems - 1}, the atoms of a system being contiguous: sort "
                "the atoms"
            )
    periodic = batch.pbc.cpu()
    if not bool(periodic.any()):
        return
    cells = batch.cell.detach().to("cpu", torch.float64)
    doubtful = periodic.any(dim=1) & ~(periodic.all(dim=1) & _surely_good(cells))
    for system in doubtful.nonzero().squeeze(1).tolist():
        _check_cell(cells[system], periodic[system], system)


def check_order(order: int) -> None:
    """Refuse highest multipoles that there are none of."""
    if order not in (0, 1, 2):
        raise ValueError(f"`order` is {order!r} but must be 0 (charges), 1 (dipoles) or 2 (quadrupoles)")


def check_positions(batch: AtomicBatch) -> None:
    """Refuse positions that are not finite. Synchronizes the device.

    Raises
    ------
    ValueError
        Naming the atom and its system.
    """
    finite = torch.isfinite(batch.positions.detach()).all(dim=1)
    if not bool(finite.all()):
        atom = int((~finite).nonzero()[0])
        raise ValueError(
            f"`positions` of atom {atom} (system {int(batch.system[atom])}) are {batch.positions[atom].tolist()} but "
            "must be finite: check the structure"
        )


def _surely_good(cells: Tensor) -> Tensor:
    """Whether cells are fit to be periodic along all axes, all at once: one by one costs as much as a small sum."""
    lengths = cells.square().sum(2).sqrt()
    volumes = (cells[:, 0] * torch.linalg.cross(cells[:, 1], cells[:, 2])).sum(1).abs()
    # Comparisons with NaN are false. Twice the bound, so that rounding decides nothing here.
    return (volumes > 2.0 * _FLATTEST_CELL * lengths.prod(1)) & torch.isfinite(volumes)


def _check_cell(cell: Tensor, periodic: Tensor, system: int) -> None:
    """Refuse periodic vectors that are not finite, zero or dependent on each other; the others carry no meaning."""
    axes = periodic.nonzero().squeeze(1).tolist()
    vectors = cell[axes]
    if not bool(torch.isfinite(vectors).all()):
        raise ValueError(
            f"`cell` of system {system} is {cell.tolist()} but must be finite along its periodic axes {axes}"
        )
    lengths = vectors.norm(dim=1)
    for axis, length in zip(axes, lengths.tolist(), strict=True):
        if not length > 0:
            raise ValueError(
                f"`cell` of system {system} has a zero vector on axis {axis} ({_AXES[axis]}), which is periodic: "
                "give the cell vector, or set pbc to False if the system is open"
            )
    # Volume, area or length that the periodic vectors span.
    volume = float(torch.linalg.det(vectors @ vectors.T).clamp(min=0.0).sqrt())
    if volume >= _FLATTEST_CELL * float(lengths.prod()):
        return
    # The axis to name is the one that lies in the plane (or along the line) of the others.
    heights = []
    for index in range(len(axes)):
        others = torch.cat((vectors[:index], vectors[index + 1 :]))
        base = float(torch.linalg.det(others @ others.T).clamp(min=1e-30).sqrt())
        heights.append(volume / base)
    lowest = min(range(len(axes)), key=lambda index: heights[index] / float(lengths[index]))
    size, others_are, needed = (
        ("volume is {:.3g} Å3", "plane", "three") if len(axes) == 3 else ("area is {:.3g} Å2", "line", "two")
    )
    raise ValueError(
        f"`cell` of system {system} is degenerate: its {size.format(volume)} and its vector on axis {axes[lowest]} "
        f"({_AXES[axes[lowest]]}) lies {heights[lowest]:.2g} Å off the {others_are} of the others; {needed} "
        "independent vectors are needed along periodic axes"
    )


def check_coefficients(coefficients: Tensor, positions: Tensor, *, values: bool) -> None:
    """Refuse dispersion coefficients that do not fit the atoms and, with ``values``, ones that are not finite.

    Looking at values synchronizes the device.

    Raises
    ------
    ValueError
        For a wrong shape or device, or a value that is not finite.
    TypeError
        For another dtype than that of the positions.
    """
    check_given("coefficients", coefficients, positions, (len(positions),))
    if values:
        check_finite("coefficients", coefficients)


def check_multipole_shapes(multipoles: Multipoles, positions: Tensor) -> None:
    """Refuse multipoles that do not fit the atoms.

    Raises
    ------
    ValueError
        For a wrong shape.
    TypeError
        For another dtype than that of the positions.
    """
    atoms = positions.shape[0]
    for name, given, shape in (
        ("charges", multipoles.charges, (atoms,)),
        ("dipoles", multipoles.dipoles, (atoms, 3)),
        ("quadrupoles", multipoles.quadrupoles, (atoms, 3, 3)),
    ):
        if given is None:
            if name == "charges":
                raise TypeError("`charges` are None but must be a tensor (atoms,): give zeros where there are none")
            continue
        check_given(name, given, positions, shape)


def check_given(name: str, given: Tensor, positions: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a tensor of the atoms with another shape, dtype or device than theirs."""
    if given.shape != shape:
        raise ValueError(
            f"`{name}` has the shape {tuple(given.shape)} but must be {shape} for a batch of {len(positions)} atoms"
        )
    if given.dtype != positions.dtype:
        raise TypeError(f"`{name}` has the dtype {given.dtype} but must have that of `positions`, {positions.dtype}")
    if given.device != positions.device:
        raise ValueError(f"`{name}` is on {given.device} but must be where `positions` is, on {positions.device}")


def check_finite(name: str, given: Tensor) -> None:
    """Refuse a tensor of the atoms with values that are not finite."""
    finite = torch.isfinite(given.detach()).reshape(len(given), math.prod(given.shape[1:])).all(dim=1)
    if not bool(finite.all()):
        atom = int((~finite).nonzero()[0])
        raise ValueError(f"`{name}` of atom {atom} are {given[atom].tolist()} but must be finite")


def check_multipole_values(multipoles: Multipoles) -> None:
    """Refuse values that are not finite and quadrupoles that are not symmetric and traceless. Synchronizes the device.

    Raises
    ------
    ValueError
        Naming the atom and the value.
    """
    for name in ("charges", "dipoles", "quadrupoles"):
        given = getattr(multipoles, name)
        if given is None:
            continue
        check_finite(name, given)
    if multipoles.quadrupoles is None or not len(multipoles.quadrupoles):
        return
    quadrupoles = multipoles.quadrupoles.detach()
    size = quadrupoles.abs().amax(dim=(1, 2))
    tolerance = 100 * torch.finfo(quadrupoles.dtype).eps * torch.maximum(size, size.mean())
    skew = (quadrupoles - quadrupoles.mT).abs().amax(dim=(1, 2))
    trace = quadrupoles.diagonal(dim1=1, dim2=2).sum(1)
    for wrong, rule, by in ((skew > tolerance, "symmetric", skew), (trace.abs() > tolerance, "traceless", trace)):
        if bool(wrong.any()):
            atom = int(wrong.nonzero()[0])
            raise ValueError(
                f"`quadrupoles` of atom {atom} must be {rule} but miss it by {float(by[atom]):.3g}: project them with "
                "½(Q + Qᵀ) − ⅓ tr(Q)·1"
            )
