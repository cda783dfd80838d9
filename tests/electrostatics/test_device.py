"""The sum with a given plan on another device than the CPU: it must not look at values there, which would wait for it.

The device here is ``meta``, whose tensors have no values at all: to look at one is an error, and what is made on the
CPU meanwhile is seen by its device. A number that is assigned to one entry (``x[0] = 1.0`` of a vector) is made on the
device here, but on CUDA it is copied there, so it is refused by its shape. An index given as a list of numbers, which
is copied, too, is not seen here but by ``benchmarks/gpu_check.py``.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from electrostatic_systems import TRICLINIC, parts, random_multipoles, random_system
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from farfield.atoms.batch import AtomicBatch
from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.dispersion import Dispersion
from farfield.electrostatics.multipoles import Multipoles
from farfield.electrostatics.plan import Seen

BULK, SLAB, WIRE, CLUSTER = (True,) * 3, (True, False, True), (False, True, False), (False,) * 3


class _NothingOnTheHost(TorchDispatchMode):
    """Refuses operations on tensors of the CPU, and numbers assigned to entries: a copy to the device waits for it."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function is not torch.ops.aten.copy_.default or args[0].ndim, "a number is assigned to an entry"
        found = function(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, found)):
            if isinstance(value, torch.Tensor):
                assert value.device.type == "meta", f"{function} has a tensor on the {value.device}"
        return found


def on_meta(batch: AtomicBatch) -> AtomicBatch:
    return batch.to("meta")


@pytest.mark.parametrize("pbc", [BULK, SLAB, WIRE, CLUSTER], ids=["bulk", "slab", "wire", "cluster"])
@pytest.mark.parametrize("method", ["auto", "ewald", "mesh"])
@pytest.mark.parametrize("order", [0, 2])
def test_a_call_with_a_plan_looks_at_no_value(pbc, method, order, monkeypatch):
    batch = random_system(4, TRICLINIC).replace(pbc=torch.tensor([pbc]))
    coulomb = Coulomb(accuracy=1e-2, method=method, background="point")
    plan = coulomb.prepare(batch).to("meta")
    batch, given = on_meta(batch), [part.to("meta").requires_grad_() for part in parts(random_multipoles(4, order))]

    def train() -> None:
        positions, cell = batch.positions.clone().requires_grad_(), batch.cell.clone().requires_grad_()
        for outputs, leaves in (("energy", (positions,)), ("all", (positions, cell))):
            fixed = batch.cell if len(leaves) == 1 else cell
            moved = batch.replace(positions=positions, cell=fixed)
            energy = coulomb(moved, Multipoles(*given), plan, outputs).energy.sum()
            used = leaves if pbc != CLUSTER else (positions,)
            slopes = torch.autograd.grad(energy, used, create_graph=True)
            torch.autograd.grad(sum(slope.square().sum() for slope in slopes), [positions, *given])

    train()  # constants are made on the device once
    with monkeypatch.context() as patch, _NothingOnTheHost():
        patch.setattr(torch, "tensor", None)
        patch.setattr(torch.Tensor, "new_tensor", None)
        train()


@pytest.mark.parametrize("pbc", [BULK, SLAB, CLUSTER], ids=["bulk", "slab", "cluster"])
@pytest.mark.parametrize("method", ["ewald", "mesh"])
def test_neither_does_dispersion(pbc, method, monkeypatch):
    batch = random_system(4, TRICLINIC).replace(pbc=torch.tensor([pbc]))
    dispersion = Dispersion(accuracy=1e-2, method=method)
    plan = dispersion.prepare(batch).to("meta")
    batch, coefficients = on_meta(batch), torch.ones(4, dtype=torch.float64, device="meta", requires_grad=True)

    def train() -> None:
        positions = batch.positions.clone().requires_grad_()
        energy = dispersion(batch.replace(positions=positions), coefficients, plan).energy.sum()
        (slope,) = torch.autograd.grad(energy, positions, create_graph=True)
        torch.autograd.grad(slope.square().sum(), [positions, coefficients])

    train()
    with monkeypatch.context() as patch, _NothingOnTheHost():
        patch.setattr(torch, "tensor", None)
        patch.setattr(torch.Tensor, "new_tensor", None)
        train()


def test_a_tensor_is_known_again_until_it_is_changed():
    tensor = torch.eye(3, dtype=torch.float64)
    seen = Seen(tensor)
    assert seen.is_still(tensor)
    assert seen.is_still(tensor.detach())
    assert not seen.is_still(tensor.clone())
    assert not seen.is_still(tensor.mT)
    assert not seen.is_still(tensor[:2])
    tensor.mul_(2.0)
    assert not seen.is_still(tensor)
    with torch.inference_mode():
        uncounted = torch.eye(3)
    assert not Seen(uncounted).is_still(uncounted)
