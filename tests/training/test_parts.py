"""Losses, schedules, order of frames, splits, averages, reference energies, whole files: each by its rule."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from farfield.atoms.batch import AtomicBatch
from farfield.datasets.dataset import Dataset, Sample
from farfield.training.build import fit_reference_energies
from farfield.training.checkpoint import load_checkpoint, save_checkpoint
from farfield.training.config import (
    ConfigError,
    DecayConfig,
    LossConfig,
    OptimizerConfig,
    SplitConfig,
    StageConfig,
    StopConfig,
)
from farfield.training.losses import Errors, ErrorSums, errors_of, loss_of, penalty, weights_at
from farfield.training.sampler import EpochBatches, split_indices
from farfield.training.schedules import AveragedWeights, EarlyStopping, LearningRate

# Losses ---------------------------------------------------------------------------------------------------------


def test_losses_by_hand() -> None:
    prediction = SimpleNamespace(
        energy=torch.tensor([1.0, 5.0], dtype=torch.float64),
        forces=torch.tensor([[1.0, 0, 0], [0, 2.0, 0], [0, 0, 0], [0, 0, -1.0]]),
        stress=None,
    )
    labels = {"energy": torch.tensor([2.0, 2.0], dtype=torch.float64), "forces": torch.zeros(4, 3)}
    errors = errors_of(prediction, labels, torch.tensor([1, 3]), ("energy", "forces"))
    # per atom: -1/1 and 3/3; forces: (1 + 4 + 1)/12
    config = LossConfig()
    loss = loss_of(errors, {"energy": 2.0, "forces": 10.0, "stress": 0.0}, config)
    assert loss.item() == pytest.approx(2.0 * 1.0 + 10.0 * 0.5)
    sums = ErrorSums()
    sums.add(errors, config)
    sums.add(errors, config)
    assert sums.metrics() == pytest.approx(
        {"energy_mae": 1e3, "energy_rmse": 1e3, "forces_mae": 1e3 / 3, "forces_rmse": 1e3 * 0.5**0.5}
    )
    assert sums.loss({"energy": 2.0, "forces": 10.0, "stress": 0.0}) == pytest.approx(7.0)


def test_total_energies_are_compared_before_rounding() -> None:
    # 2⁻¹⁰ eV of 10⁶ eV is lost in float32
    prediction = SimpleNamespace(energy=torch.tensor([1e6 + 2**-10], dtype=torch.float64), forces=None, stress=None)
    labels = {"energy": torch.tensor([1e6], dtype=torch.float64)}
    errors = errors_of(prediction, labels, torch.tensor([1]), ("energy",))
    assert errors["energy"].difference.item() == 2**-10


@pytest.mark.parametrize("kind", ["mse", "huber"])
@pytest.mark.parametrize("part", ["energy", "forces", "stress"])
def test_labels_that_are_not_known_are_left_out(part: str, kind: str) -> None:
    """Loss, gradient and metrics are those of the frames that have the label; the others get no gradient of it."""
    generator = torch.Generator().manual_seed(2)
    counts = torch.tensor([2, 1, 3])
    shapes = {"energy": (3,), "forces": (6, 3), "stress": (3, 3, 3)}
    known = torch.tensor([True, False, True])
    rows = known.repeat_interleave(counts) if part == "forces" else known
    values = {p: torch.randn(*s, generator=generator, dtype=torch.float64) for p, s in shapes.items()}
    labels = {p: torch.randn(*s, generator=generator, dtype=torch.float64) for p, s in shapes.items()}
    labels[part][~rows] = torch.nan
    config = LossConfig(kind=kind)
    weights = {p: float(p == part) for p in shapes}

    def outcome(which: torch.Tensor, atoms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
        chosen = {p: (v[atoms] if p == "forces" else v[which]).requires_grad_() for p, v in values.items()}
        theirs = {p: v[atoms] if p == "forces" else v[which] for p, v in labels.items()}
        errors = errors_of(SimpleNamespace(**chosen), theirs, counts[which], list(shapes))
        sums = ErrorSums()
        sums.add(errors, config)
        loss = loss_of(errors, weights, config)
        assert sums.loss(weights) == pytest.approx(loss.item())
        loss.backward()
        gradient = chosen[part].grad
        assert gradient is not None
        return loss.detach(), gradient, sums.metrics()

    every = torch.ones(3, dtype=torch.bool)
    loss, gradient, metrics = outcome(every, every.repeat_interleave(counts))
    alone, expected, metrics_alone = outcome(known, known.repeat_interleave(counts))
    torch.testing.assert_close(loss, alone)
    torch.testing.assert_close(gradient[rows], expected)
    assert (gradient[~rows] == 0).all()
    assert metrics[f"{part}_rmse"] == pytest.approx(metrics_alone[f"{part}_rmse"])


def test_a_batch_without_any_label_of_a_part_has_none_of_it_in_its_loss() -> None:
    forces = torch.randn(4, 3, requires_grad=True)
    prediction = SimpleNamespace(energy=torch.zeros(1, dtype=torch.float64), forces=forces)
    labels = {"energy": torch.ones(1, dtype=torch.float64), "forces": torch.full((4, 3), torch.nan)}
    errors = errors_of(prediction, labels, torch.tensor([4]), ("energy", "forces"))
    loss = loss_of(errors, {"energy": 16.0, "forces": 10.0, "stress": 0.0}, LossConfig())
    loss.backward()
    assert loss.item() == 1.0
    assert forces.grad is not None  # with DDP every parameter must have a gradient
    assert (forces.grad == 0).all()
    sums = ErrorSums()
    sums.add(errors, LossConfig())
    assert set(sums.metrics()) == {"energy_mae", "energy_rmse"}


def test_a_prediction_that_is_nan_is_not_taken_for_a_missing_label() -> None:
    prediction = SimpleNamespace(energy=torch.zeros(1, dtype=torch.float64), forces=torch.full((1, 3), torch.nan))
    labels = {"energy": torch.zeros(1, dtype=torch.float64), "forces": torch.zeros(1, 3)}
    errors = errors_of(prediction, labels, torch.tensor([1]), ("energy", "forces"))
    assert loss_of(errors, {"energy": 1.0, "forces": 1.0, "stress": 0.0}, LossConfig()).isnan()


@given(st.floats(-3, 3), st.floats(0.1, 2))
def test_huber_is_quadratic_then_linear(x: float, delta: float) -> None:
    expected = x * x if abs(x) <= delta else delta * (2 * abs(x) - delta)
    value = penalty(torch.tensor([x], dtype=torch.float64), "huber", delta)
    assert value.item() == pytest.approx(expected, abs=1e-12)


def test_huber_sums_equal_the_loss() -> None:
    errors = {
        "energy": Errors(torch.tensor([0.1, -2.0], dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)),
        "forces": Errors(torch.tensor([[0.01, 3.0, -0.2]]), torch.tensor(3.0, dtype=torch.float64)),
    }
    config = LossConfig(kind="huber")
    weights = {"energy": 1.0, "forces": 3.0, "stress": 0.0}
    sums = ErrorSums()
    sums.add(errors, config)
    assert sums.loss(weights) == pytest.approx(loss_of(errors, weights, config).item())


def test_weights_switch_and_ramp() -> None:
    stages = (
        StageConfig(energy=1, forces=100),
        StageConfig(from_epoch=10, energy=50, forces=100),
        StageConfig(from_epoch=20, ramp=4, energy=10, forces=20, stress=8),
    )
    energies = [weights_at(stages, epoch)["energy"] for epoch in (0, 9, 10, 19, 20, 21, 22, 23, 24, 100)]
    assert energies == pytest.approx([1, 1, 50, 50, 40, 30, 20, 10, 10, 10])
    assert weights_at(stages, 21) == pytest.approx({"energy": 30, "forces": 60, "stress": 4})


# Schedules ------------------------------------------------------------------------------------------------------


def optimizer(**decay: object) -> OptimizerConfig:
    return OptimizerConfig(learning_rate=2.0, warmup_steps=3, decay=DecayConfig.model_validate(decay))


def test_warmup_is_linear() -> None:
    rate = LearningRate(optimizer(kind="none"), 5, 10)
    assert [rate.at(step) for step in range(6)] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0])


def test_cosine_ends_at_its_minimum() -> None:
    rate = LearningRate(optimizer(kind="cosine", minimum=0.1), 5, 10)
    values = [rate.at(step) for step in range(3, 51)]
    assert all(a > b for a, b in zip(values[:-1], values[1:], strict=True))
    assert rate.at(25) == pytest.approx(2.0 * 0.55)
    assert rate.at(50) == pytest.approx(0.2)


def test_exponential_falls_by_epochs() -> None:
    rate = LearningRate(optimizer(kind="exponential", factor=0.5, minimum=0.2), 5, 10)
    assert [rate.at(step) for step in (4, 5, 10, 15, 49)] == pytest.approx([2.0, 1.0, 0.5, 0.4, 0.4])


def test_plateau_lowers_the_rate_after_its_patience() -> None:
    rate = LearningRate(optimizer(kind="plateau", factor=0.5, patience=2, threshold=0.1), 1, 100)
    seen = []
    for value in (1.0, 0.8, 0.79, 0.78, 0.77, 0.3, 0.3, 0.3):
        rate.end_epoch(value)
        seen.append(rate.at(50))
    # .79 and .78 are no improvement by a tenth over .8: the rate falls; .3 is one
    assert seen == pytest.approx([2, 2, 2, 1, 1, 1, 1, 0.5])


def test_early_stopping_waits_for_the_last_stage() -> None:
    stopping = EarlyStopping(StopConfig(patience=2), first_epoch=3)
    improved = []
    for epoch, value in enumerate((3.0, 4.0, 4.0, 4.0)):
        improved.append(stopping.update(value, epoch))
        assert not stopping.stop
    assert improved == [True, False, False, False]
    stopping.update(5.0, 4)
    assert stopping.stop
    assert stopping.best_epoch == 0


def test_without_early_stopping_the_best_is_still_known() -> None:
    stopping = EarlyStopping(None, first_epoch=0)
    for epoch, value in enumerate((3.0, 2.0, 4.0)):
        stopping.update(value, epoch)
    assert not stopping.stop
    assert stopping.best_epoch == 1


def test_average_of_constant_weights_is_these_weights() -> None:
    model = torch.nn.Linear(2, 2)
    average = AveragedWeights(model, 0.9)
    for _ in range(5):
        average.update()
    for mine, theirs in zip(average.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs.detach())


def test_average_follows_its_recursion() -> None:
    model = torch.nn.Linear(1, 1, bias=False).double()
    average = AveragedWeights(model, 0.5)
    expected = model.weight.item()
    for step in range(20):
        with torch.no_grad():
            model.weight.fill_(float(step))
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert next(average.model.parameters()).item() == pytest.approx(expected)


def test_without_an_average_the_model_itself_is_used() -> None:
    model = torch.nn.Linear(1, 1)
    average = AveragedWeights(model, None)
    average.update()
    assert average.model is model


# Order and splits -----------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 7), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_visits_every_frame_once(n: int, size: int, seed: int, epoch: int) -> None:
    sampler = EpochBatches(n, size, seed)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert sorted(i for batch in batches for i in batch) == list(range(n))


def test_order_depends_on_seed_and_epoch_alone() -> None:
    first, second = EpochBatches(30, 4, 7), EpochBatches(30, 4, 7)
    for epoch in range(5):  # one has a history, the other has not
        first.set_epoch(epoch)
        list(first)
    torch.manual_seed(1)
    np.random.seed(2)  # noqa: NPY002 - the global generator must not matter
    second.set_epoch(4)
    assert list(first) == list(second)
    second.set_epoch(3)
    assert list(first) != list(second)
    other = EpochBatches(30, 4, 8)
    other.set_epoch(4)
    assert list(first) != list(other)


def test_an_epoch_can_be_entered_anywhere() -> None:
    sampler = EpochBatches(30, 4, 7)
    sampler.set_epoch(2)
    whole = list(sampler)
    sampler.set_epoch(2, start=3)
    assert list(sampler) == whole[3:]
    assert len(sampler) == len(whole)


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4))
def test_processes_share_an_epoch(n: int, size: int, world: int) -> None:
    shares = [EpochBatches(n, size, 0, rank, world) for rank in range(world)]
    assert {len(list(share)) for share in shares} == {len(shares[0])}
    assert {i for share in shares for batch in share for i in batch} == set(range(n))


@given(st.integers(4, 60), st.floats(0.1, 0.8), st.sampled_from(["random", "contiguous"]), st.integers(0, 3))
def test_splits_are_partitions(n: int, fraction: float, method: str, seed: int) -> None:
    config = SplitConfig.model_validate({"method": method, "fraction": fraction, "seed": seed})
    if not 0 < round(fraction * n) < n:
        return
    train, validation = split_indices(n, config)
    assert sorted(train + validation) == list(range(n))
    assert len(validation) == round(fraction * n)
    assert (train, validation) == split_indices(n, config)
    if method == "contiguous":
        assert validation == list(range(n - len(validation), n))


def test_a_split_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="5 of 5"):
        split_indices(5, SplitConfig(count=5))


# Reference energies ---------------------------------------------------------------------------------------------


def composed(rows: list[list[int]], energies: list[float]) -> Dataset:
    samples = []
    for numbers, energy in zip(rows, energies, strict=True):
        n = len(numbers)
        batch = AtomicBatch(
            positions=torch.zeros(n, 3),
            numbers=torch.tensor(numbers),
            cell=torch.zeros(1, 3, 3),
            pbc=torch.zeros(1, 3, dtype=torch.bool),
            system=torch.zeros(n, dtype=torch.int64),
        )
        samples.append(Sample(batch, {"energy": torch.tensor([energy], dtype=torch.float64)}))
    return Dataset(samples)


@given(st.lists(st.floats(-4e4, 4e4), min_size=3, max_size=3))
def test_reference_energies_are_exact_where_energies_are_sums(values: list[float]) -> None:
    energies = dict(zip((1, 6, 8), values, strict=True))
    rows = [[1], [1, 1, 8], [6, 8, 8], [6, 1, 1, 1, 1], [8, 1]]
    fitted = fit_reference_energies(composed(rows, [math.fsum(energies[z] for z in row) for row in rows]))
    assert fitted == pytest.approx(energies, rel=1e-9, abs=1e-6)


def test_reference_energies_leave_out_energies_that_are_not_known() -> None:
    rows, energies = [[1], [1, 1, 8], [8, 1], [8]], [-1.0, -12.0, -11.0, math.nan]
    assert fit_reference_energies(composed(rows, energies)) == pytest.approx({1: -1.0, 8: -10.0})


def test_reference_energies_of_one_composition_have_minimum_norm() -> None:
    fitted = fit_reference_energies(composed([[1, 1, 8]] * 3, [-9.0, -10.0, -11.0]))
    # the smallest (h, o) with 2h + o = -10
    assert fitted == pytest.approx({1: -4.0, 8: -2.0})


# Files ----------------------------------------------------------------------------------------------------------


def test_checkpoints_hold_no_pickled_objects(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save_checkpoint(path, {"tensor": torch.arange(3), "number": 1.5, "list": [None, "text"]})
    state = load_checkpoint(path)
    assert state["list"] == [None, "text"]
    torch.save({"format": 1, "object": LossConfig()}, path)
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_damaged_checkpoints_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load_checkpoint(path)


def test_newer_checkpoints_are_refused_by_name(tmp_path: Path) -> None:
    torch.save({"format": 99}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="99"):
        load_checkpoint(tmp_path / "last.ckpt")
    torch.save([1], tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="not a checkpoint of farfield"):
        load_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "other.ckpt")
