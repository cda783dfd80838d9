"""Models of nequip's own builders, and energies by nequip's own means, for the tests of its adapters."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from host_laws import mixed
from potential_structures import joined
from torch import Tensor, nn

from farfield import augment
from farfield.atoms.batch import AtomicBatch
from farfield.potentials.augmented import AugmentedPotential


@contextmanager
def building() -> Iterator[None]:
    """Set nequip up for building models, and undo afterwards what that does to the process."""
    import e3nn
    from lightning.pytorch.utilities.seed import isolate_rng
    from nequip.utils.global_state import set_global_state

    dtype, defaults = torch.get_default_dtype(), dict(e3nn.get_optimization_defaults())
    with isolate_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            set_global_state()
            yield
        finally:
            torch.set_default_dtype(dtype)
            e3nn.set_optimization_defaults(jit_script_fx=defaults["jit_script_fx"])
            e3nn.set_optimization_defaults(jit_mode=defaults["jit_mode"])


def _completed(settings: dict[str, Any]) -> dict[str, Any]:
    settings = {"seed": 2, "model_dtype": "float64", "r_max": 3.0, "type_names": ["H", "C", "O"], **settings}
    pair = settings.get("pair_potential")
    if pair is not None and pair["_target_"].endswith("ZBL"):
        settings["pair_potential"] = {"chemical_species": settings["type_names"], **pair}
    return settings


def graph_model(target: str, **settings: Any) -> nn.Module:
    """A model by a builder of nequip or allegro, in double precision, for H, C, O within 3 Å."""
    from hydra.utils import get_method

    with building():
        return get_method(target)(**_completed(settings))


def write_checkpoint(path: Path, target: str, **settings: Any) -> nn.Module:
    """Write what ``nequip-train`` would, and return the model."""
    import lightning
    from nequip.train import NequIPLightningModule

    with building():
        module = NequIPLightningModule(
            model={"_target_": target, **_completed(settings)},
            num_datasets={"train": 1, "val": 0, "test": 0, "predict": 0},
            info_dict={"versions": {}, "training_module": {"_target_": "nequip.train.NequIPLightningModule"}},
        )
    content = {
        "state_dict": module.state_dict(),
        "hyper_parameters": dict(module.hparams),
        "pytorch-lightning_version": lightning.__version__,
    }
    torch.save(content, path)
    return module.evaluation_model["sole_model"]


def inputs_of(batch: AtomicBatch, numbers: tuple[int, ...] = (1, 6, 8)) -> dict[str, Tensor]:
    """Inputs of nequip, made here by another way than the adapter's."""
    pairs = batch.neighbors
    assert pairs is not None
    return {
        "pos": batch.positions,
        "cell": batch.cell,
        "pbc": batch.pbc,
        "edge_index": torch.stack([pairs.i, pairs.j]),
        "edge_cell_shift": pairs.shifts.to(batch.cell.dtype),
        "atom_types": (batch.numbers[:, None] == torch.tensor(numbers)).nonzero()[:, 1],
        "batch": batch.system,
        "num_atoms": batch.counts,
    }


def energy_by_nequip(model: nn.Module, batch: AtomicBatch) -> Tensor:
    """Energies as nequip's energy model gives them."""
    return model.model.func(inputs_of(batch))["total_energy"][:, 0]


def augmented_with_its_energy(model: nn.Module, single: bool) -> AugmentedPotential:
    """Augment a model, and make sure that the short range keeps precision and energy."""
    potential = augment(model)
    assert potential.dtype == (torch.float32 if single else torch.float64)
    batch = joined(mixed(), 3.0)
    expected = energy_by_nequip(model, batch)
    tolerance = 1e-5 if single else 1e-9
    found = potential(batch.to(dtype=potential.dtype))
    energy = found.energy - found.long_range_energy
    torch.testing.assert_close(energy, expected.double(), rtol=tolerance, atol=tolerance)
    return potential
