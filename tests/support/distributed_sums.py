"""What one process, or each rank of a process group, finds for the same systems: the tests compare them.

`measure` is the same program with and without a process group. `run_ranks` starts the ranks, each of which measures
every case with its share of the atoms and writes down what it found.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import re
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from electrostatic_systems import TRICLINIC, random_system, traceless
from torch import Tensor

from farfield.atoms.batch import AtomicBatch, concatenate
from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.dispersion import Dispersion
from farfield.electrostatics.distributed import sum_over_ranks
from farfield.electrostatics.multipoles import Multipoles
from farfield.electrostatics.response import LinearResponse
from farfield.electrostatics.solver import Solver
from farfield.electrostatics.susceptibility import Response
from farfield.potentials.augmented import AugmentedPotential
from farfield.potentials.features import Features
from farfield.potentials.long_range import LongRange

#: After this a rank that waits for others gives up: a hang becomes a failure.
_PATIENCE = timedelta(minutes=5)

Found = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Part:
    """A batch, features (atoms, 3) that multipoles are made of, and which atom of the whole each of them is."""

    batch: AtomicBatch
    features: Tensor
    which: Tensor


def mixture() -> AtomicBatch:
    """Two cells, a slab, a wire and a molecule, charged, the cells oblique."""
    slab = random_system(6, TRICLINIC[[1, 2, 0]], seed=1).replace(pbc=torch.tensor([[True, False, True]]))
    wire = random_system(5, TRICLINIC, seed=2).replace(pbc=torch.tensor([[False, True, False]]))
    return concatenate(
        [random_system(9, TRICLINIC), slab, random_system(5, seed=3), wire, random_system(4, TRICLINIC * 0.8, seed=4)]
    )


def molecules() -> AtomicBatch:
    return concatenate([random_system(n, seed=n, size=3.0) for n in (4, 7, 6)])


#: Each case: a solver, made for a process group, the systems, and the highest multipoles.
CASES: dict[str, tuple[Callable[[Any], Solver], Callable[[], AtomicBatch], int]] = {
    "auto": (lambda group: Coulomb(background="point", process_group=group), mixture, 2),
    "charges": (lambda group: Coulomb(accuracy=1e-3, process_group=group), mixture, 0),
    "ewald": (lambda group: Coulomb(method="ewald", self_interaction=True, process_group=group), mixture, 1),
    "mesh": (
        lambda group: Coulomb(accuracy=1e-2, method="mesh", background="point", process_group=group),
        mixture,
        2,
    ),
    "open": (lambda group: Coulomb(method="open", self_interaction=True, process_group=group), molecules, 2),
    "open charges": (lambda group: Coulomb(method="open", process_group=group), molecules, 0),
    "dispersion": (lambda group: Dispersion(accuracy=1e-2, process_group=group), mixture, 0),
    "dispersion on a mesh": (lambda group: Dispersion(accuracy=1e-1, method="mesh", process_group=group), mixture, 0),
}


def part_of(batch: AtomicBatch, rank: int = 0, ranks: int = 1) -> Part:
    """Share of a rank: uneven, with systems that it holds nothing of; of four ranks the last holds no atom at all."""
    atoms = torch.arange(batch.n_atoms)
    generator = torch.Generator().manual_seed(7)
    features = torch.randn(batch.n_atoms, 3, generator=generator, dtype=torch.float64)
    owner = torch.randint(min(ranks, 3), (batch.n_atoms,), generator=generator)
    owner[batch.system == 1] = 0
    which = atoms[owner == rank]
    share = batch.replace(positions=batch.positions[which], numbers=batch.numbers[which], system=batch.system[which])
    return Part(share, features[which], which)


def _multipoles(features: Tensor, weights: Tensor, order: int) -> Multipoles:
    """Multipoles as a model would make them, of features and parameters (4,) that all ranks hold."""
    charges = torch.tanh(features @ weights[:3])
    dipoles = weights[3] * features
    quadrupoles = traceless(features[:, :, None] * (features * weights[:3])[:, None, :])
    return Multipoles(charges, dipoles if order > 0 else None, quadrupoles if order > 1 else None)


def measure(solver: Solver, part: Part, order: int) -> Found:
    """Everything that a solver gives for a rank's part, and its derivatives, as if there were no other ranks.

    Names say what a tensor is: ``energy`` is equal on all ranks, ``of atoms`` belongs to the atoms of the part, and
    ``shares`` are to be summed over ranks.
    """
    positions = part.batch.positions.clone().requires_grad_()
    cell = part.batch.cell.clone().requires_grad_()
    weights = torch.tensor([0.7, -0.4, 0.5, 0.3], dtype=torch.float64, requires_grad=True)
    batch = part.batch.replace(positions=positions, cell=cell)
    multipoles = _multipoles(part.features, weights, order)
    given = [m for m in (multipoles.charges, multipoles.dipoles, multipoles.quadrupoles) if m is not None]
    # Each atom and system counts differently in the losses.
    by_atom = 1.0 + 0.1 * torch.cos(part.which.double())
    by_system = 1.0 + 0.1 * torch.arange(batch.n_systems, dtype=torch.float64)
    found: Found = {}

    def keep(name: str, loss: Tensor, *atomic: Tensor) -> None:
        inputs = (positions, *atomic, cell, weights)
        gradients = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True, materialize_grads=True)
        for what, gradient in zip(("positions", *"quT"[: len(atomic)]), gradients[:-2], strict=True):
            found[f"{name}, by {what} of atoms"] = gradient
        found[f"{name}, by cell, shares"], found[f"{name}, by parameters, shares"] = gradients[-2:]

    local = torch.zeros(())
    if isinstance(solver, Coulomb):
        result = solver(batch, multipoles)
        short = solver(batch, multipoles, outputs="energy")
        found |= {"potential of atoms": result.potential, "field of atoms": result.field}
        found["field gradient of atoms"] = result.field_gradient
        found["operator of atoms"] = solver.operator(batch, order=order)(multipoles).potential
        squares = result.potential.square() + result.field.square().sum(1) + result.field_gradient.square().sum((1, 2))
        local = 0.01 * (by_atom * squares).sum()
    else:
        assert isinstance(solver, Dispersion)
        result = short = solver(batch, multipoles.charges)
    found |= {"energy": result.energy, "energy alone": short.energy, "energies of atoms": result.atom_energies}
    keep("energy", (by_system * result.energy).sum(), *given)
    keep("energy alone", (by_system * short.energy).sum(), *given)
    keep("energies of atoms", (by_atom * result.atom_energies.square()).sum(), *given)

    slope, strain = torch.autograd.grad(
        short.energy.sum(), (positions, cell), create_graph=True, allow_unused=True, materialize_grads=True
    )
    keep("forces", (by_atom[:, None] * slope.square()).sum() + short.energy.square().sum(), *given)

    outer = positions[:, :, None] * slope[:, None, :]
    virial = torch.zeros_like(cell).index_add(0, batch.system, outer) + cell.mT @ strain
    found["virial, shares"] = virial
    keep("stress", sum_over_ranks(virial, solver.process_group).square().sum(), *given)

    if isinstance(solver, Coulomb):
        keep("potentials", local + result.energy.sum(), *given)
        # a derivative of a loss of this rank's potentials is one of the sum over ranks: three passes in all
        (slope,) = torch.autograd.grad((by_atom * result.potential.square()).sum(), positions, create_graph=True)
        keep("slopes of potentials", 1e-3 * (by_atom[:, None] * slope.square()).sum(), *given)
    return {name: value.detach() for name, value in found.items()}


def measure_model(part: Part, group: Any) -> Found:
    """Charges of a model under a constraint, their energy, and what a loss of energy and forces gives."""
    torch.manual_seed(0)
    model = LongRange(
        3, total_charge="constraint", learned_weights=True, charge_scale=1.0, process_group=group
    ).double()
    positions = part.batch.positions.clone().requires_grad_()
    batch = part.batch.replace(
        positions=positions, total_charge=torch.arange(part.batch.n_systems, dtype=torch.float64)
    )
    scalars = part.features + torch.sin(positions)
    out = model(batch, Features(energy=positions.new_zeros(batch.n_systems), scalars=scalars))
    (slope,) = torch.autograd.grad(out.energy.sum(), positions, create_graph=True)
    loss = slope.square().sum() + out.energy.square().sum()
    on_positions, *gradients = torch.autograd.grad(loss, (positions, *model.parameters()))
    found = {f"loss, by parameter {index}, shares": gradient for index, gradient in enumerate(gradients)}
    found |= {"energy": out.energy, "charges of atoms": out.multipoles.charges, "slopes of atoms": slope}
    found["loss, by positions of atoms"] = on_positions
    return {name: value.detach() for name, value in found.items()}


def _refusals(group: Any, rank: int, ranks: int) -> dict[str, str]:
    """What is raised where one rank, the last, gives something wrong."""
    part, wrong = part_of(mixture(), rank, ranks), rank == ranks - 1
    batch, multipoles = part.batch, _multipoles(part.features, torch.ones(4, dtype=torch.float64), 1)
    coulomb = Coulomb(process_group=group)
    plan = coulomb.prepare(batch)
    flat = batch.replace(cell=batch.cell * 0.0)
    strained = batch.replace(cell=batch.cell * (1.0 + 1e-9))
    fewer = batch.replace(cell=batch.cell[:-1], pbc=batch.pbc[:-1], system=batch.system.clamp(max=3))
    more = batch.replace(cell=batch.cell.clone().requires_grad_())
    apart = batch.replace(positions=batch.positions * 10.0)
    attempts: dict[str, Callable[[], Any]] = {
        "cell of no volume": lambda: coulomb(flat if wrong else batch, multipoles),
        "another cell": lambda: Coulomb(process_group=group).prepare(strained if wrong else batch),
        "fewer systems": lambda: coulomb.prepare(fewer if wrong else batch),
        "another accuracy": lambda: Coulomb(accuracy=1e-3 if wrong else 1e-4, process_group=group).prepare(batch),
        "another smearing": lambda: Coulomb(1.1 if wrong else 1.0, process_group=group).prepare(batch),
        "a dtype": lambda: coulomb(
            batch, multipoles.replace(charges=multipoles.charges.float()) if wrong else multipoles, plan
        ),
        "no dipoles": lambda: coulomb(batch, multipoles.replace(dipoles=None) if wrong else multipoles, plan),
        "a gradient": lambda: coulomb(more if wrong else batch, multipoles, plan),
        "another output": lambda: coulomb(batch, multipoles, plan, "energy" if wrong else "all"),
        "a plan of one process": lambda: coulomb(batch, multipoles, Coulomb().prepare(batch) if wrong else plan),
        "a plan that is too small": lambda: coulomb(apart, multipoles, plan),
        "another order": lambda: coulomb.operator(batch, plan, order=3 if wrong else 2),
        "a potential": lambda: AugmentedPotential(torch.nn.Identity(), LongRange(3, process_group=group)),
        "response": lambda: LinearResponse(coulomb)(batch, multipoles, Response(multipoles.charges.square())),
        "induced charges": lambda: LongRange(3, induced_charges=True, process_group=group),
    }
    found = {"before": str(coulomb(batch, multipoles, plan).energy.tolist())}
    for name, attempt in attempts.items():
        try:
            attempt()
            found[name] = "nothing"
        except (ValueError, TypeError) as error:
            found[name] = f"{type(error).__name__}: {error}"
    # after all this the ranks are still in step
    found["in step"] = str(coulomb(batch, multipoles, plan).energy.tolist())
    return found


def _copies(group: Any) -> dict[str, bool]:
    """Whether copies and files of a solver know its process group."""
    coulomb = Coulomb(process_group=group)
    made = {
        "deepcopy": copy.deepcopy(coulomb),
        "copy": copy.copy(coulomb),
        "pickle": pickle.loads(pickle.dumps(coulomb)),
        "config": Coulomb.from_config(coulomb.config()),
    }
    return {name: other.process_group is group for name, other in made.items()}


def _page(rank: int, ranks: int, port: int) -> dict[str, float]:
    """What the example of the documentation finds, started as torchrun would."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "distributed.md").read_text()
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - our own page
    return {"energy": names["energy"].item(), "gradient": names["scale"].grad.item()}


def _work(rank: int, ranks: int, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=_PATIENCE)
    group = dist.group.WORLD
    found: dict[str, Any] = {}
    for name, (make, systems, order) in CASES.items():
        found[name] = measure(make(group), part_of(systems(), rank, ranks), order)
    found["model"] = measure_model(part_of(mixture(), rank, ranks), group)
    found["refusals"], found["copies"] = _refusals(group, rank, ranks), _copies(group)
    dist.destroy_process_group()
    found["page"] = _page(rank, ranks, port)
    torch.save(found, f"{folder}/{rank}.pt")


def run_ranks(ranks: int, folder: Path) -> list[dict[str, Any]]:
    """What each rank of a process group finds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_work, args=(ranks, str(folder), port), nprocs=ranks)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks)]


def whole(name: str) -> tuple[Found, Tensor]:
    """What one process finds for a case."""
    if name == "model":
        return measure_model(part_of(mixture()), None)
    make, systems, order = CASES[name]
    return measure(make(None), part_of(systems()), order)


def atoms_of(name: str, rank: int, ranks: int) -> Tensor:
    """Which atoms of a case a rank holds."""
    systems = mixture if name == "model" else CASES[name][1]
    return part_of(systems(), rank, ranks).which


def add_up(name: str, found: list[dict[str, Any]]) -> Found:
    """Put together what the ranks found for a case: atoms in their places, shares summed, energies once."""
    together: Found = {}
    for key, first in found[0][name].items():
        of_ranks = [of_rank[name][key] for of_rank in found]
        if "shares" in key:
            together[key] = torch.stack(of_ranks).sum(0)
        elif "of atoms" in key:
            which = torch.cat([atoms_of(name, rank, len(found)) for rank in range(len(found))])
            together[key] = torch.cat(of_ranks)[which.argsort()]
        else:
            assert all(torch.equal(first, other) for other in of_ranks), f"{key} differs between ranks"
            together[key] = first
    return together
