"""Models of nequip's own builders, and energies by nequip's own means, for the tests of its adapters."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from farfield.atoms.batch import AtomicBatch


def graph_model(target: str, **settings: Any) -> nn.Module:
    """A model by a builder of nequip or allegro, in double precision, for H, C, O within 3 Å."""
    import e3nn
    from hydra.utils import get_method
    from lightning.pytorch.utilities.seed import isolate_rng
    from nequip.utils.global_state import set_global_state

    dtype = torch.get_default_dtype()
    defaults = dict(e3nn.get_optimization_defaults())
    names = settings.setdefault("type_names", ["H", "C", "O"])
    pair = settings.get("pair_potential")
    if pair is not None and pair["_target_"].endswith("ZBL"):
        settings["pair_potential"] = {"chemical_species": names, **pair}
    with isolate_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            set_global_state()  # seeds everything, and sets e3nn's mode and the default dtype
            return get_method(target)(**{"seed": 2, "model_dtype": "float64", "r_max": 3.0, **settings})
        finally:
            torch.set_default_dtype(dtype)
            e3nn.set_optimization_defaults(jit_script_fx=defaults["jit_script_fx"])
            e3nn.set_optimization_defaults(jit_mode=defaults["jit_mode"])


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
