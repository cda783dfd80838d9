"""What the solvers share: their common arguments, and the plan of the last batch, which is kept."""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.electrostatics.checks import check_batch_shapes, check_batch_values, check_order, check_positions
from farfield.electrostatics.distributed import check_process_group, check_same, everywhere, ranks_of, together
from farfield.electrostatics.plan import CoulombPlan, Seen
from farfield.electrostatics.planning import make_plan

_METHODS = ("auto", "open", "ewald", "mesh")


@dataclass(frozen=True, eq=False)
class _KeptPlan:
    """A plan, and all of the solver and the batch that it depends on."""

    plan: CoulombPlan
    settings: tuple[Any, ...]
    seen: tuple[Seen, Seen, Seen]
    dtype: torch.dtype
    charged: Tensor

    def is_fine_for(self, charged: Tensor) -> bool:
        """Whether systems of a batch that it fits, in which charges do not lead, have the meshes for that.

        Others may have them, too: so energies do not jump back and forth where charges hardly lead.
        """
        return bool((charged | ~self.charged).all())

    def fits(self, batch: AtomicBatch) -> bool:
        """Whether a batch would get the same plan if it has room: the same systems in the same cells."""
        given = (batch.cell, batch.pbc, batch.system)
        return batch.positions.dtype == self.dtype and all(
            seen.is_still(theirs) or seen.equals(theirs) for seen, theirs in zip(self.seen, given, strict=True)
        )

    def seen_with(self, batch: AtomicBatch) -> _KeptPlan:
        """Return the same for tensors of the batch, which have been found equal, so that they are known again."""
        if self.plan.is_of(batch.cell):
            return self
        plan = dataclasses.replace(self.plan, cell=Seen(batch.cell))
        return dataclasses.replace(self, plan=plan, seen=_seen(batch))


def _flags(charged: bool | Tensor, batch: AtomicBatch) -> Tensor:
    """Flag of each system, on the CPU."""
    flags = torch.as_tensor(charged, dtype=torch.bool, device="cpu")
    if flags.ndim and flags.shape != (batch.n_systems,):
        raise ValueError(
            f"`charged` has the shape {tuple(flags.shape)} but the batch has {batch.n_systems} systems: give one flag, "
            "or one each"
        )
    return flags.expand(batch.n_systems)


def _seen(batch: AtomicBatch) -> tuple[Seen, Seen, Seen]:
    return Seen(batch.cell), Seen(batch.pbc), Seen(batch.system)


class Solver:
    """Arguments and plans of a sum over batches of systems.

    Parameters
    ----------
    smearing
        Width σ (Å): a number, or one per system, shape (systems,). No gradient in it.
    accuracy
        Relative RMS error of the forces.
    method
        ``"auto"``, ``"open"``, ``"ewald"`` or ``"mesh"``.
    process_group
        The torch.distributed process group whose ranks hold the atoms of the systems, each some of them; None if all
        atoms are here. No part of `config`, nor of files; copies keep it.

    Raises
    ------
    ValueError
        For a smearing that is not positive, an accuracy outside 1e-12 … 0.1, an unknown method.
    TypeError
        For another object than a process group.
    """

    #: Whether the kernel ends before the images along open directions, instead of images being far enough away.
    _truncates = True

    def __init__(
        self,
        smearing: float | Float[Tensor, " systems"],
        *,
        accuracy: float,
        method: str,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        if isinstance(smearing, Tensor):
            smearing = smearing.detach().to("cpu", torch.float64)
            wrong = ~(torch.isfinite(smearing) & (smearing > 0))
            if smearing.ndim != 1 or bool(wrong.any()):
                raise ValueError(
                    f"`smearing` is {smearing.tolist()} but must be positive, one number or one per system (Å)"
                )
        elif not (math.isfinite(smearing) and smearing > 0):
            raise ValueError(f"`smearing` is {smearing} but must be positive (Å)")
        if not 1e-12 <= accuracy <= 0.1:
            raise ValueError(f"`accuracy` is {accuracy} but must lie between 1e-12 and 0.1 (relative RMS force error)")
        if method not in _METHODS:
            raise ValueError(f"`method` is {method!r} but must be one of {', '.join(map(repr, _METHODS))}")
        check_process_group(process_group)
        self.process_group = process_group
        self.smearing = smearing
        self.accuracy = float(accuracy)
        self.method = method
        self._kept: _KeptPlan | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the plan of the last batch and the process group out of files."""
        return {**self.__dict__, "_kept": None, "process_group": None}

    def __copy__(self) -> Self:
        return self._with_state(self.__getstate__())

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self._with_state(copy.deepcopy(self.__getstate__(), memo))

    def _with_state(self, state: dict[str, Any]) -> Self:
        """Return a copy, which works in the same process group: without it, it would sum a rank's atoms alone."""
        copied = type(self).__new__(type(self))
        copied.__dict__.update(state, process_group=self.process_group)
        return copied

    def config(self) -> dict[str, Any]:
        """Arguments that build the same solver, as plain values."""
        smearing = self.smearing.tolist() if isinstance(self.smearing, Tensor) else float(self.smearing)
        return {"smearing": smearing, "accuracy": self.accuracy, "method": self.method}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build a solver from what `config` gives."""
        config = dict(config)
        smearing = config.pop("smearing", 1.0)
        if isinstance(smearing, list):
            smearing = torch.tensor(smearing, dtype=torch.float64)
        return cls(smearing, **config)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.config().items())})"

    def _make_plan(self, batch: AtomicBatch, smearing: np.ndarray, order: int, charged: np.ndarray) -> CoulombPlan:
        """Plan a checked batch whose systems have these σ (Å)."""
        return make_plan(
            batch, smearing, self.accuracy, self.method, order=order, charged=charged, ranks=self.process_group
        )

    def prepare(
        self, batch: AtomicBatch, order: int = 0, charged: bool | Bool[Tensor, " systems"] = True
    ) -> CoulombPlan:
        """Check a batch and settle how it will be summed.

        The plan depends on which atoms belong to which system, on the cells and on ``pbc``, and for slabs and wires on
        how far they extend along open directions, with room for a tenth more; otherwise not on the positions. It can be
        kept while atoms move in fixed cells. When a cell changes, prepare again: an old plan lacks the
        reciprocal vectors that have come inside the cutoff since, and the energy is then no longer continuous to all
        digits. Takes no part in gradients; synchronizes the device. With a process group all ranks prepare together.

        Parameters
        ----------
        batch
            The batch; ``numbers`` and ``neighbors`` are not looked at.
        order
            Highest multipoles for which ``method="auto"`` takes the fastest sum: 0 charges, 1 dipoles, 2 quadrupoles.
            The plan is good for all.
        charged
            Whether charges lead among the multipoles to be summed: in each system, or in all, shape (systems,). Forces
            between dipoles or quadrupoles alone are so small that a mesh for the same ``accuracy`` is finer: False
            makes it. A call without a plan looks at the multipoles. Ewald sums are good for all.

        Returns
        -------
        CoulombPlan
            The plan, on the device of the batch.

        Raises
        ------
        ValueError
            For wrong shapes, positions or periodic cells that are not finite, a zero or degenerate cell vector on a
            periodic axis, a batch that does not fit ``smearing`` or ``method``, another order, ``charged`` of another
            shape.
        TypeError
            For wrong dtypes.
        """
        with together(self.process_group) as same:
            self._check_batch(batch)
            check_order(order)
            flags = _flags(charged, batch)
            same["the number of systems"], same["`order`"] = batch.n_systems, order
            same["`accuracy`"], same["`method`"] = self.accuracy, _METHODS.index(self.method)
            same["bits of `positions.dtype`"] = torch.finfo(batch.positions.dtype).bits
        smearing = self.smearing
        if not isinstance(smearing, Tensor):
            smearing = torch.full((batch.n_systems,), float(smearing), dtype=torch.float64)
        if self.process_group is not None:
            check_same("smearing", smearing, self.process_group)
            check_same("pbc", batch.pbc, self.process_group)
            check_same("charged", flags, self.process_group)
            check_same("cell", batch.cell.detach().where(batch.pbc[..., None], 0.0), self.process_group)
        return self._make_plan(batch, smearing.numpy(), order, flags.numpy())

    def _check_batch(self, batch: AtomicBatch) -> None:
        check_batch_shapes(batch)
        check_batch_values(batch)
        periodic = batch.pbc.any(dim=1)
        if self.method == "open" and bool(periodic.any()):
            raise ValueError(
                f"`method` is 'open' but system {int(periodic.nonzero()[0])} is periodic: use method='auto' or change "
                "`pbc`"
            )
        if isinstance(self.smearing, Tensor) and len(self.smearing) != batch.n_systems:
            raise ValueError(
                f"`smearing` has {len(self.smearing)} values but the batch has {batch.n_systems} systems: give one each"
            )

    def _checked_plan(
        self, batch: AtomicBatch, plan: CoulombPlan | None, order: int = 0, charged: bool | Tensor = True
    ) -> CoulombPlan:
        if plan is None:
            return self.plan_of(batch, order, charged)
        with together(self.process_group):
            self._check_plan(batch, plan)
        return plan

    def _check_plan(self, batch: AtomicBatch, plan: CoulombPlan) -> None:
        check_batch_shapes(batch)
        if (plan.n_atoms, plan.n_systems) != (batch.n_atoms, batch.n_systems):
            raise ValueError(
                f"`plan` was prepared for {plan.n_atoms} atoms in {plan.n_systems} systems but the batch has "
                f"{batch.n_atoms} in {batch.n_systems}: call prepare(batch) again"
            )
        if (plan.gap is None) != self._truncates:
            raise ValueError(
                f"`plan` is that of another solver: give what prepare(batch) of this {type(self).__name__} gives"
            )
        if plan.n_ranks != ranks_of(self.process_group):
            raise ValueError(
                f"`plan` was prepared by {plan.n_ranks} ranks but `process_group` has {ranks_of(self.process_group)}: "
                "call prepare(batch) again"
            )

    def plan_of(
        self, batch: AtomicBatch, order: int = 0, charged: bool | Bool[Tensor, " systems"] = True
    ) -> CoulombPlan:
        """Return the plan of the last batch where it fits this one, else a new one; arguments as in `prepare`."""
        kept, ranks = self._kept, self.process_group
        settings = (*self._plan_settings(), order if self.method == "auto" else 0)
        with together(ranks):
            check_batch_shapes(batch)
            flags = _flags(charged, batch)
            fits = kept is not None and kept.settings == settings and kept.fits(batch) and kept.is_fine_for(flags)
        if everywhere(fits, ranks) and kept is not None and kept.plan.has_room(batch, ranks):
            with together(ranks):
                check_positions(batch)
            self._kept = kept.seen_with(batch)
            return self._kept.plan
        plan = self.prepare(batch, order, charged)
        if not torch.is_inference_mode_enabled():  # what is made there cannot take part in a graph later
            self._kept = _KeptPlan(plan, settings, _seen(batch), batch.positions.dtype, flags)
        return plan

    def _plan_settings(self) -> tuple[Any, ...]:
        """Return what a plan depends on besides the batch: attributes, which somebody may set."""
        smearing = self.smearing.tolist() if isinstance(self.smearing, Tensor) else self.smearing
        return smearing, self.accuracy, self.method, self.process_group
