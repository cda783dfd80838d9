"""Models of nequip and nequip-allegro: how to build one from plain settings, and how to find the settings of one."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from farfield.hosts.registry import require

_TAIL = ["per_type_energy_scale_shift", "total_energy_sum"]
_NEQUIP_PARTS = ["type_embed", "spharm", "edge_norm", "bessel_encode", "factor", "per_atom_energy_readout", *_TAIL]
_ALLEGRO_PARTS = [
    "edge_norm", "radial_chemical_embed", "scalar_embed_mlp", "tensor_embed", "allegro", "edge_readout", "edge_eng_sum",
    *_TAIL,
]  # fmt: skip


@contextmanager
def importing(host: str) -> Iterator[None]:
    """Import and build in double precision, without TorchScript and without notices, and leave no trace."""
    require(host)
    dtype = torch.get_default_dtype()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import e3nn

        before = dict(e3nn.get_optimization_defaults())
        try:
            importlib.import_module("nequip.model")
            if host == "allegro":
                importlib.import_module("allegro.model")
            e3nn.set_optimization_defaults(jit_mode="eager")
            torch.set_default_dtype(torch.float64)
            yield
        finally:
            torch.set_default_dtype(dtype)
            # jit_script_fx sets jit_mode too: it goes first
            e3nn.set_optimization_defaults(jit_script_fx=before["jit_script_fx"])
            e3nn.set_optimization_defaults(jit_mode=before["jit_mode"])


def read(path: Path, head: str | None) -> nn.Module:
    """Load a checkpoint of nequip-train, or a package of nequip-package, without its settings of the process."""
    from lightning.pytorch.utilities.seed import isolate_rng
    from nequip.model.saved_models.load_utils import load_saved_model
    from nequip.utils.global_state import set_global_state

    with isolate_rng():  # nequip seeds everything
        set_global_state()
        model = load_saved_model(path, compile_mode="eager", model_key=None)
    if head is None and len(model) > 1:
        raise ValueError(f"the file has several models: set `head` to one of {list(model)}")
    if head is not None and head not in model:
        raise ValueError(f"`head` is {head!r} but must be one of {list(model)}")
    return model[head or next(iter(model))]


def parts_of(model: Any) -> dict[str, Any]:
    """Parts of the energy model by name, whatever it is wrapped in."""
    found = getattr(model, "model", model)  # GraphModel
    found = getattr(found, "func", found)  # its module for forces
    return dict(found.named_children())


# ---- building --------------------------------------------------------------------------------------------------------


def build(builder: Any, elements: Sequence[int], cutoff: float, options: Mapping[str, Any]) -> Any:
    """Return an energy model by nequip's builder of it: its own neighbours and scales 1, without shifts.

    Raises
    ------
    ValueError
        If nequip refuses a setting.
    """
    from ase.data import chemical_symbols

    given = dict(options)
    names = [chemical_symbols[number] for number in elements]
    pairs = given.pop("per_edge_type_cutoff")
    if pairs is not None:
        pairs = {
            k: {n: float(c) for n, c in v.items()} if isinstance(v, Mapping) else float(v) for k, v in pairs.items()
        }
    power = given.pop("zbl_cutoff_p")
    zbl = None
    if power is not None:
        zbl = {
            "_target_": "nequip.nn.pair_potential.ZBL",
            "units": "metal",
            "chemical_species": names,
            "polynomial_cutoff_p": power,
        }
    ones = dict.fromkeys(names, 1.0)
    try:
        # the function behind nequip's decorator, which would seed and set up the whole process
        found = builder.__wrapped__(
            r_max=cutoff,
            type_names=names,
            per_edge_type_cutoff=pairs,
            pair_potential=zbl,
            avg_num_neighbors=ones,
            per_type_energy_scales=ones,
            do_derivatives=False,
            **given,
        ).func
    except AssertionError as error:
        raise ValueError(f"nequip refuses a setting: {error}") from error
    for module in norms_of(found).values():
        # a number that `calibrate` finds: with the weights, not among the arguments
        value = module.norm_const
        del module.norm_const
        module.register_buffer("norm_const", value)
    return found


def norms_of(model: nn.Module) -> dict[str, Any]:
    """Modules that divide sums over neighbours, by name; found by name, as packages bring classes of their own."""
    return {name: module for name, module in model.named_modules() if type(module).__name__ == "AvgNumNeighborsNorm"}


def match_dtype(model: nn.Module, dtype: torch.dtype) -> None:
    """Tell the modules that remember the dtype which they were made in that it is another now."""
    for module in model.modules():
        for name in ("_output_dtype", "model_dtype"):
            if name in module.__dict__:
                setattr(module, name, dtype)


def harmonics_up_to(l_max: int) -> str:
    """Spherical harmonics of edges, in e3nn's notation."""
    return "+".join(f"1x{degree}{'eo'[degree % 2]}" for degree in range(l_max + 1))


def irreps_of_layers(num_layers: int, l_max: int, parity: bool, num_features: int | Sequence[int]) -> list[str]:
    """Features of each layer as nequip's short arguments mean them; the last has only scalars."""
    counts = [num_features] * (l_max + 1) if isinstance(num_features, int) else list(num_features)
    if len(counts) != l_max + 1:
        raise ValueError(f"`num_features` is {counts} but must be one number, or one for each l up to {l_max}")
    kinds: list[str] = []
    for degree, count in enumerate(counts):
        signs = ("eo" if parity else "e") if degree % 2 == 0 else ("eo" if parity else "o")
        kinds.extend(f"{count}x{degree}{sign}" for sign in signs)
    return ["+".join(kinds)] * (num_layers - 1) + [f"{counts[0]}x0e"]


# ---- settings of a model ---------------------------------------------------------------------------------------------


def elements_of(parts: Mapping[str, Any]) -> list[int]:
    """Atomic numbers of the types of a model."""
    from ase.data import atomic_numbers

    names = list(parts["per_type_energy_scale_shift"].type_names)
    unknown = [name for name in names if name not in atomic_numbers or name == "X"]
    if unknown:
        raise ValueError(f"the model's types {unknown} are no element symbols, and farfield knows atoms by element")
    return [atomic_numbers[name] for name in names]


def shared_settings(parts: Mapping[str, Any], expected: Sequence[str], host: str) -> dict[str, Any]:
    """Arguments that the adapters of both hosts have.

    Raises
    ------
    ValueError
        If the model has other parts than expected, or an option that the adapter does not know.
    """
    pair = parts.get("pair_potential")
    if pair is not None and type(pair).__name__ != "ZBL":
        raise ValueError(
            f"this model has a {type(pair).__module__}.{type(pair).__name__} as `pair_potential` but the adapter knows "
            "only ZBL"
        )
    if pair is not None and abs(float(pair._qqr2exesquare) - 7.2) > 0.1:
        raise ValueError("the ZBL repulsion of this model is not in units `metal`, but energies must be in eV")
    layers = [name for name in parts if name.endswith("_convnet")]
    optional = {"pair_potential", "cutoff"}  # Allegro adds `cutoff` before a pair potential
    if set(parts) - optional != set(expected) | set(layers):
        raise ValueError(f"this {host} model has the parts {list(parts)}, not those that the adapter knows")
    norm, shift = parts["edge_norm"], parts["per_type_energy_scale_shift"]
    pairs = None
    if norm._per_edge_type:
        lengths = norm._rmax_recip.double().reciprocal().reshape(len(shift.type_names), -1)
        pairs = {
            name: dict(zip(shift.type_names, row, strict=True))
            for name, row in zip(shift.type_names, lengths.tolist(), strict=True)
        }
    return {
        "elements": elements_of(parts),
        "cutoff": float(norm.r_max),
        "per_edge_type_cutoff": pairs,
        "per_type_energy_scales_trainable": bool(shift.has_scales and shift.scales_trainable),
        "zbl_cutoff_p": None if pair is None else float(pair.cutoff.p),
    }


def nequip_settings(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the adapter for a NequIP model."""
    shared = shared_settings(parts, _NEQUIP_PARTS, "NequIP")
    embed, bessel = parts["type_embed"], parts["bessel_encode"]
    if embed.do_categorical_graph_field_embed:
        raise ValueError("this NequIP model embeds further inputs of systems: the adapter knows none")
    layers = [part for name, part in parts.items() if name.endswith("_convnet")]
    if any(type(layer.conv.tp_scatter).__name__ != "TensorProductScatter" for layer in layers):
        raise ValueError("this NequIP model is converted to another tensor product: load it without that modifier")
    readout = _mlp_settings(parts["per_atom_energy_readout"].mlp_module)
    return {
        **shared,
        "feature_irreps_hidden": [str(layer.feature_irreps_hidden) for layer in layers],
        "irreps_edge_sh": str(parts["spharm"].irreps_edge_sh),
        "type_embed_num_features": embed.embed_module.embedding_dim,
        "radial_mlp_depth": [len(layer.conv.edge_mlp.dims) - 2 for layer in layers],
        "radial_mlp_width": [layer.conv.edge_mlp.dims[1] for layer in layers],
        **{f"readout_mlp_{key}": value for key, value in readout.items()},
        "num_bessels": bessel.num_bessels,
        "bessel_trainable": bool(bessel.trainable),
        "polynomial_cutoff_p": bessel.cutoff.p,
        "convnet_sc": any(layer.conv.use_sc for layer in layers),
        "convnet_resnet": any(bool(layer.resnet) for layer in layers),
        "learnable_shift": bool(layers[0].conv.use_sc),
        "convnet_nonlinearity_type": "gate" if type(layers[0].equivariant_nonlin).__name__ == "Gate" else "norm",
    }


def allegro_settings(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the adapter for an Allegro model."""
    shared = shared_settings(parts, _ALLEGRO_PARTS, "Allegro")
    core, embed = parts["allegro"], parts["radial_chemical_embed"]
    if any(type(product).__name__ != "Contracter" for product in core.tps):
        raise ValueError("this Allegro model is converted to another tensor product: load it without that modifier")
    mlps = {
        "scalar_embed_mlp": parts["scalar_embed_mlp"].mlp_module,
        "allegro_mlp": core.latents[0],
        "readout_mlp": parts["edge_readout"].mlp_module,
    }
    if hasattr(embed, "spline"):
        spline = embed.spline
        radial = {"num_splines": spline.num_splines, "spline_span": spline.spline_span}
        radial |= {"radial": "spline", "radial_chemical_embed_dim": spline.num_channels}
    else:
        bessel = embed.bessel_encode
        radial = {"num_bessels": bessel.num_bessels, "polynomial_cutoff_p": bessel.cutoff.p, "radial": "bessel"}
        radial |= {"bessel_trainable": bool(bessel.trainable)}
        radial |= {"radial_chemical_embed_dim": embed.type_embed.basis_linear.dims[-1]}
    projection = core.first_layer_env_embed_projection
    return {
        **shared,
        **radial,
        **{f"{name}_{key}": value for name, mlp in mlps.items() for key, value in _mlp_settings(mlp).items()},
        "num_layers": core.num_layers,
        "num_scalar_features": core.num_scalar_features,
        "num_tensor_features": core.num_tensor_features,
        "irreps_edge_sh": str(parts["tensor_embed"].irreps_out["edge_attrs"]),
        "tensor_track_allowed_irreps": str(core.tensor_track_allowed_irreps),
        "tp_path_channel_coupling": bool(core.tps[0].path_channel_coupling),
        "weight_individual_irreps": bool(core._env_weighter.weight_individual_irreps),
        "forward_normalize": _is_forward(parts["edge_readout"].mlp_module, projection),
    }


def _mlp_settings(mlp: Any) -> dict[str, Any]:
    """Depth, width and nonlinearity of one of nequip's perceptrons."""
    from nequip.nn.mlp import _NONLINEARITY_MAP

    depth = len(mlp.dims) - 2
    name: str | None = "silu"
    if depth and not mlp.is_nonlinear:
        name = None
    elif depth:
        kind = type(mlp.mlp[1]).__name__
        name = next(str(key) for key, cls in _NONLINEARITY_MAP.items() if cls.__name__ == kind)
    return {"hidden_layers_depth": depth, "hidden_layers_width": mlp.dims[1] if depth else None, "nonlinearity": name}


def _is_forward(*mlps: Any) -> bool:
    """Whether factors of the weights follow from the widths of what goes in."""
    firsts: list[Any] = [mlp.mlp[0] for mlp in mlps if isinstance(mlp.mlp, nn.Sequential)]
    return all(abs(float(first.alpha) * first.in_features**0.5 - 1.0) < 1e-3 for first in firsts)


def weights_for(host: nn.Module, source: nn.Module) -> tuple[dict[str, Tensor], list[float]]:
    """Weights of a model as `build` arranges them, one scale and number of neighbours per element, and its shifts."""
    weights, own = dict(source.state_dict()), host.state_dict()
    stem = "per_type_energy_scale_shift."
    shifts, scales = weights[stem + "shifts"], weights[stem + "scales"]
    count = own[stem + "scales"].shape[0]
    weights[stem + "shifts"] = own[stem + "shifts"]
    weights[stem + "scales"] = (scales if scales.numel() else torch.ones(1, 1)).double().expand(count, 1)
    for name, norm in norms_of(source).items():
        weights[f"{name}.norm_const"] = norm.norm_const.expand(count, 1)
    moved = shifts.double().expand(count, 1) if shifts.numel() else torch.zeros(count, 1)
    return weights, moved[:, 0].tolist()
