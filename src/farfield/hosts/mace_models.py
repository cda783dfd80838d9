"""Models of mace-torch: how to build one from plain settings, and how to find the settings of one."""

from __future__ import annotations

import copy
import importlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from farfield.hosts.registry import require

#: Importing mace sets this for the whole process: every ``torch.load`` in it would then unpickle anything.
_UNSAFE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


@contextmanager
def importing() -> Iterator[None]:
    """Import and build in double precision, without notices that nobody here can act on, and leave no trace."""
    require("mace")
    dtype, before = torch.get_default_dtype(), os.environ.get(_UNSAFE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            importlib.import_module("mace.modules")
            torch.set_default_dtype(torch.float64)
            yield
        finally:
            torch.set_default_dtype(dtype)
            if before is None:
                os.environ.pop(_UNSAFE, None)
            else:
                os.environ[_UNSAFE] = before


def build(config: dict[str, Any]) -> Any:
    """Return mace's model of a configuration, without energies of the elements."""
    import mace.modules as modules
    import numpy as np
    from e3nn import o3

    given = dict(config)
    chosen = {}
    for key, target, known in (
        ("interaction_first", "interaction_cls_first", modules.interaction_classes),
        ("interaction", "interaction_cls", modules.interaction_classes),
        ("readout", "readout_cls", modules.readout_classes),
        ("gate", "gate", modules.gate_dict),
    ):
        name = given.pop(key)
        if name not in known:
            raise ValueError(f"`{key}` is {name!r} but must be one of {sorted(known)}")
        chosen[target] = known[name]
    if len({multiplicity for multiplicity, _ in o3.Irreps(given["hidden_irreps"])}) > 1:
        raise ValueError(
            f"`hidden_irreps` is {given['hidden_irreps']!r} but mace multiplies features channel by channel: give all "
            "kinds as many channels, as in 64x0e+64x1o"
        )
    elements, heads, edge_irreps = given.pop("elements"), given["heads"], given.pop("edge_irreps")
    given.pop("head")
    return modules.ScaleShiftMACE(
        atomic_inter_scale=[1.0] * len(heads),
        atomic_inter_shift=[0.0] * len(heads),
        r_max=given.pop("cutoff"),
        num_elements=len(elements),
        atomic_numbers=elements,
        atomic_energies=np.zeros((len(heads), len(elements))),
        avg_num_neighbors=1.0,
        hidden_irreps=o3.Irreps(given.pop("hidden_irreps")),
        MLP_irreps=o3.Irreps(given.pop("MLP_irreps")),
        edge_irreps=None if edge_irreps is None else o3.Irreps(edge_irreps),
        **chosen,
        **given,
    )


def as_scale_shift(model: nn.Module) -> Any:
    """Copy in double precision on the CPU; a plain MACE is one whose scale is 1 and whose shift is 0."""
    from mace.modules import MACE, ScaleShiftMACE
    from mace.modules.blocks import ScaleShiftBlock

    if type(model).__name__ == "MACELES":
        raise ValueError(
            "`model` is a MACELES, which has charges and a long range of its own: farfield.load takes its file"
        )
    if type(model) not in (MACE, ScaleShiftMACE):
        raise ValueError(
            f"`model` is a {type(model).__name__} but must be a MACE or ScaleShiftMACE: other kinds have more parts"
        )
    if getattr(model, "embedding_specs", None) is not None or hasattr(model, "joint_embedding"):
        raise ValueError("this MACE model embeds further inputs (charges, spins, …): the adapter knows none")
    optimized = ("cueq_config", "oeq_config")
    if any(getattr(block, name, None) is not None for block in model.modules() for name in optimized):
        raise ValueError("this MACE model is converted to cuEquivariance or openEquivariance: convert it back to e3nn")
    found: Any = copy.deepcopy(model).cpu().double()
    if type(model) is MACE:
        found.scale_shift = ScaleShiftBlock(1.0, 0.0)
        found.__class__ = ScaleShiftMACE
    return found


def settings_of(model: Any) -> dict[str, Any]:
    """Arguments of the adapter for a ScaleShiftMACE."""
    import mace.modules as modules
    from mace.tools.scripts_utils import extract_config_mace_model

    basis = model.radial_embedding.bessel_fn
    if not hasattr(basis, "bessel_weights"):  # mace looks for the number of functions there, whatever their kind
        object.__setattr__(basis, "bessel_weights", torch.empty(model.radial_embedding.out_dim))
    found = extract_config_mace_model(model)
    layers = [str(product.linear.irreps_out) for product in model.products]
    gates = [name for name, function in modules.gate_dict.items() if function is found["gate"]]
    if not gates:
        raise ValueError(f"this MACE model has a gate that has no name: {found['gate']!r}")
    edge_irreps = found["edge_irreps"]
    kept = (
        "num_interactions", "max_ell", "num_bessel", "radial_type", "radial_MLP", "pair_repulsion", "apply_cutoff",
        "use_reduced_cg", "use_so3", "use_agnostic_product", "use_last_readout_only", "use_edge_irreps_first",
    )  # fmt: skip
    return {
        **{key: found[key] for key in kept},
        "elements": [int(z) for z in model.atomic_numbers],
        "cutoff": float(model.r_max),
        "hidden_irreps": str(found["hidden_irreps"]),
        "MLP_irreps": str(found["MLP_irreps"]),
        "num_polynomial_cutoff": int(found["num_polynomial_cutoff"]),
        "correlation": [_correlation(product) for product in model.products],
        "gate": gates[0],
        "interaction_first": found["interaction_cls_first"].__name__,
        "interaction": found["interaction_cls"].__name__,
        "readout": found["readout_cls"].__name__,
        "distance_transform": str(found["distance_transform"]),
        "keep_last_layer_irreps": len(layers) > 1 and layers[-1] == layers[0] and "1o" in layers[0],
        "edge_irreps": None if edge_irreps is None else str(edge_irreps),
        "heads": [str(name) for name in found["heads"]],
    }


def _correlation(product: Any) -> int:
    return len(product.symmetric_contractions.contractions[0].weights) + 1


def load_weights(host: nn.Module, weights: dict[str, Tensor]) -> None:
    """Take weights over; scales and energies of elements may be numbers where the host keeps one for each head."""
    own = host.state_dict()
    fitting = {
        key: value.reshape(own[key].shape) if key in own and value.numel() == own[key].numel() else value
        for key, value in weights.items()
    }
    try:
        host.load_state_dict(fitting)
    except RuntimeError as error:
        raise ValueError(f"this MACE model cannot be rebuilt from its settings: {error}") from error
