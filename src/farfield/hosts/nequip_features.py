"""Features of atoms that NequIP and Allegro make on the way to their energy, which they would not hand out."""

from __future__ import annotations

import functools
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from farfield.hosts.base import columns_of

# Names in nequip's dictionary (nequip.data.AtomicDataDict), and ours in it: l = 1 and 2 of earlier layers are gone from
# it before the energy is there.
_NODE_ATTRS, _NODE_FEATURES, _EDGE_FEATURES = "node_attrs", "node_features", "edge_features"
_EDGES, _NORM = "edge_index", "feature_norm_factor"
_KEPT = "farfield_kept_{}"


def _keep(layer: int, field: str, module: nn.Module, args: Any, data: dict[str, Tensor]) -> None:
    """Forward hook: keep what a module has written until the energy is there."""
    data[_KEPT.format(layer)] = data[field]


def _remember(module: nn.Module, args: Any, output: Tensor) -> None:
    """Forward hook of a part that does not see the dictionary."""
    module.__dict__["_farfield_output"] = output


def _collect(module: Any, args: Any, data: dict[str, Tensor]) -> None:
    """Forward hook of Allegro's layers: take from their tensor products what `_remember` has left there."""
    for layer, product in enumerate(module.tps):
        output = product.__dict__.pop("_farfield_output")
        if layer < len(module.tps) - 1:  # the last has only scalars
            data[_KEPT.format(layer + 1)] = output


class HostFeatures(nn.Module):
    """Scalars, vectors and tensors of atoms from a run of nequip's energy model, which gets hooks for it.

    NequIP: the embedding of the element and the features of all layers; 0e are scalars, 1o vectors, 2e tensors.
    Allegro, whose features belong to edges: sums over the edges of an atom, normalized as Allegro does, of the latents
    of all layers (scalars), and of its tensor track, the weighted harmonics and what each layer but the last makes of
    them (vectors, tensors).

    Parameters
    ----------
    modules
        The parts of the energy model by name, up to its last layer at least.
    """

    scalar_index: Tensor
    vector_index: Tensor
    tensor_index: Tensor

    def __init__(self, modules: dict[str, Any]) -> None:
        super().__init__()
        self.on_edges = "allegro" in modules
        layers = _tap_allegro(modules) if self.on_edges else _tap_nequip(modules)
        self.n_kept = len(layers) - 1
        found = columns_of(layers)
        if self.on_edges:
            del found["scalar"][layers[0].dim :]  # scalars of the tensor track went into the latents
        for name, columns in found.items():
            self.register_buffer(f"{name}_index", torch.tensor(columns, dtype=torch.int64), persistent=False)
        self.n_scalars = len(found["scalar"])
        self.n_vectors = len(found["vector"]) // 3
        self.n_tensors = len(found["tensor"]) // 5

    def forward(
        self, data: dict[str, Tensor]
    ) -> tuple[
        Float[Tensor, "atoms scalars"], Float[Tensor, "atoms vectors 3"], Float[Tensor, "atoms tensors components"]
    ]:
        """Take the features out of the dictionary that the energy model gave; tensors as five components."""
        kept = [data.pop(_KEPT.format(layer)) for layer in range(self.n_kept)]
        first = data[_EDGE_FEATURES if self.on_edges else _NODE_ATTRS]
        features = torch.cat([first, *(part.flatten(1) for part in kept)], dim=1)
        if self.on_edges:
            features = _sum_over_edges(features, data[_EDGES][0], data[_NORM])
        return (
            features[:, self.scalar_index],
            features[:, self.vector_index].unflatten(1, (self.n_vectors, 3)),
            features[:, self.tensor_index].unflatten(1, (self.n_tensors, 5)),
        )


def _sum_over_edges(values: Tensor, centers: Int[Tensor, " edges"], factor: Tensor) -> Tensor:
    total = values.new_zeros(factor.shape[0], values.shape[1]).index_add(0, centers, values)
    return total * factor


def _tap_nequip(modules: dict[str, Any]) -> list[Any]:
    """Put hooks on the layers; return the irreps of what is kept, the embedding of the element first."""
    layers = [module for name, module in modules.items() if name.endswith("_convnet")]
    for number, layer in enumerate(layers):
        layer.register_forward_hook(functools.partial(_keep, number, _NODE_FEATURES))
    return [
        modules["type_embed"].irreps_out[_NODE_ATTRS],
        *(layer.irreps_out[_NODE_FEATURES] for layer in layers),
    ]


def _tap_allegro(modules: dict[str, Any]) -> list[Any]:
    """Put hooks on the tensor track; return the irreps of what is kept, the latents first."""
    embed, core = modules["tensor_embed"], modules["allegro"]
    embed.register_forward_hook(functools.partial(_keep, 0, _EDGE_FEATURES))
    for product in core.tps:
        product.register_forward_hook(_remember)
    core.register_forward_hook(_collect)
    latents = core.irreps_out[_EDGE_FEATURES]
    # channel by channel: all kinds of the first, then all of the second
    tracks = [embed.irreps_out[_EDGE_FEATURES], *(product.irreps_out for product in core.tps[:-1])]
    return [latents, *(list(track) * core.num_tensor_features for track in tracks)]
