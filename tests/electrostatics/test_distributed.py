"""Solvers in a process group: what 1, 2 and 4 processes find together is what one finds alone, to rounding."""

from __future__ import annotations

import functools
import re

import distributed_sums
import pytest
import torch
import torch.distributed as dist
from distributed_sums import CASES
from electrostatic_systems import one_system

from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.distributed import check_process_group
from farfield.electrostatics.multipoles import Multipoles

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this build of torch has no gloo"
)

#: Beside the largest entry of a tensor: rounding of sums in another order, twice differentiated.
TOLERANCE = 1e-12

alone = functools.cache(distributed_sums.whole)


@pytest.fixture(scope="module", params=[1, 2, 4], ids=lambda ranks: f"{ranks} ranks")
def found(request, tmp_path_factory):
    """What each rank found: one start of the processes serves all tests."""
    return distributed_sums.run_ranks(request.param, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", [*CASES, "model"])
def test_ranks_agree_with_one_process(found, case):
    """Energy, everything at the atoms, and first, second and third derivatives in all that can be differentiated."""
    expected, actual = alone(case), distributed_sums.add_up(case, found)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        error = float((actual[name] - value).abs().max())
        assert error <= TOLERANCE * float(value.abs().max()), f"{name}: {error}"


@pytest.mark.parametrize("case", [*CASES, "model"])
def test_the_comparison_has_something_to_compare(case):
    """Only the gradient in the cell of open systems is zero."""
    for name, value in alone(case).items():
        assert bool(value.any()) != (case.startswith("open") and "cell" in name), name


def test_ranks_hold_uneven_parts():
    """One rank of two lacks a system, and one of four holds nothing: what sums have to put up with."""
    batch = distributed_sums.mixture()
    counts = [distributed_sums.part_of(batch, rank, 4).batch.counts for rank in range(4)]
    assert torch.equal(torch.stack(counts).sum(0), batch.counts)
    assert counts[3].sum() == 0
    assert distributed_sums.part_of(batch, 1, 2).batch.counts[1] == 0


#: What one rank does wrong, and what all ranks say.
REFUSALS = {
    "cell of no volume": "zero vector on axis",
    "another cell": "`cell` must be the same on all ranks .* differs by up to",
    "fewer systems": "the number of systems must be the same on all ranks .* between 4 and 5",
    "another accuracy": "`accuracy` must be the same",
    "another smearing": "`smearing` must be the same",
    "a dtype": "`charges` has the dtype torch.float32",
    "no dipoles": "`dipoles` are given .* must be the same",
    "a gradient": "`cell` are given .* carry a gradient .* must be the same",
    "another output": "`outputs` among its options must be the same",
    "a plan of one process": "`plan` was prepared by 1 ranks but `process_group` has",
    "a plan that is too small": "`plan` has no room for system",
    "another order": "`order` is 3 but must be",
    "response": "response needs all atoms of a system on one process",
    "induced charges": "induced charges and dipoles need all atoms of a system on one process",
    "a potential": "`long_range` works in a process group but a potential needs whole systems",
}


def test_what_fails_on_one_rank_raises_on_all(found):
    for rank, of_rank in enumerate(found):
        for mistake, rule in REFUSALS.items():
            message = of_rank["refusals"][mistake]
            agreed = len(found) == 1 and message == "nothing"  # there is no other rank to differ from
            assert agreed or re.search(rule, message), f"{mistake}, rank {rank}: {message}"


def test_ranks_are_in_step_after_errors(found):
    """The same energy as ever, on all ranks."""
    energies = {of_rank["refusals"]["in step"] for of_rank in found}
    assert energies == {found[0]["refusals"]["before"]}


def test_copies_stay_in_the_group_and_files_do_not(found):
    for of_rank in found:
        assert of_rank["copies"] == {"deepcopy": True, "copy": True, "pickle": False, "config": False}


def test_the_page_of_the_documentation_says_what_one_process_finds(found, close):
    generator = torch.Generator().manual_seed(0)
    positions = 10.0 * torch.rand(60, 3, generator=generator, dtype=torch.float64)
    batch = one_system(positions.requires_grad_(), 10.0 * torch.eye(3, dtype=torch.float64))
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    energy = Coulomb()(batch, Multipoles(scale * torch.sin(positions).sum(1))).energy
    (slope,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
    slope.square().sum().backward()
    for of_rank in found:
        close(of_rank["page"]["energy"], energy.item())
        close(of_rank["page"]["gradient"], scale.grad)


def test_what_is_no_process_group_is_refused():
    with pytest.raises(TypeError, match="`process_group` is 'gloo' but must be a torch.distributed.ProcessGroup"):
        check_process_group("gloo")
