"""Allegro (nequip-allegro, Musaelian et al., arXiv 2204.05249) as a backbone: energy, sums of what its edges know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from farfield.hosts import nequip_models
from farfield.hosts.nequip import NequIPFamily


class AllegroBackbone(NequIPFamily):
    """Allegro as a backbone; arguments are those of ``allegro.model.AllegroModel`` where not said otherwise.

    Allegro's features belong to edges. Scalars of an atom are sums over its edges of the latents of all layers, vectors
    and tensors those of the 1o and 2e of its tensor track: the weighted harmonics, and what the layers but the last
    make of them. It passes no messages: features know an atom's surroundings within the cutoff alone.

    Parameters
    ----------
    elements
        Atomic numbers that the model knows.
    cutoff
        Range of the edges (Å), ``r_max``.
    l_max, parity
        As in Allegro: highest order, and whether there are pseudovectors and their like.
    irreps_edge_sh, tensor_track_allowed_irreps
        The harmonics, and what the tensor track may hold, in e3nn's notation, instead of these two.
    radial
        ``"bessel"`` (with ``num_bessels``, ``bessel_trainable``, ``polynomial_cutoff_p``) or ``"spline"`` (with
        ``num_splines``, ``spline_span``), instead of Allegro's ``radial_chemical_embed``.
    per_edge_type_cutoff
        Nearer cutoffs for some pairs of elements, by symbols.
    zbl_cutoff_p
        Add nequip's ZBL repulsion, with this power in its envelope.
    radial_chemical_embed_dim, num_layers, num_scalar_features, num_tensor_features, \
    scalar_embed_mlp_hidden_layers_depth, scalar_embed_mlp_hidden_layers_width, scalar_embed_mlp_nonlinearity, \
    allegro_mlp_hidden_layers_depth, allegro_mlp_hidden_layers_width, allegro_mlp_nonlinearity, \
    readout_mlp_hidden_layers_depth, readout_mlp_hidden_layers_width, readout_mlp_nonlinearity, \
    tp_path_channel_coupling, weight_individual_irreps, forward_normalize, per_type_energy_scales_trainable
        As in Allegro.

    Raises
    ------
    ImportError
        If nequip-allegro is not installed.
    ValueError
        If an argument is out of its range.
    """

    host_name = "allegro"

    def __init__(
        self,
        elements: Sequence[int],
        cutoff: float,
        *,
        num_layers: int = 2,
        l_max: int = 1,
        parity: bool = True,
        num_scalar_features: int = 64,
        num_tensor_features: int = 16,
        irreps_edge_sh: str | None = None,
        tensor_track_allowed_irreps: str | None = None,
        radial: str = "bessel",
        radial_chemical_embed_dim: int | None = None,
        num_bessels: int = 8,
        bessel_trainable: bool = False,
        polynomial_cutoff_p: float = 6,
        num_splines: int = 16,
        spline_span: int = 12,
        scalar_embed_mlp_hidden_layers_depth: int = 1,
        scalar_embed_mlp_hidden_layers_width: int | None = 64,
        scalar_embed_mlp_nonlinearity: str | None = "silu",
        allegro_mlp_hidden_layers_depth: int = 1,
        allegro_mlp_hidden_layers_width: int | None = 64,
        allegro_mlp_nonlinearity: str | None = "silu",
        readout_mlp_hidden_layers_depth: int = 1,
        readout_mlp_hidden_layers_width: int | None = 32,
        readout_mlp_nonlinearity: str | None = "silu",
        tp_path_channel_coupling: bool = True,
        weight_individual_irreps: bool = True,
        forward_normalize: bool = True,
        per_edge_type_cutoff: Mapping[str, Any] | None = None,
        per_type_energy_scales_trainable: bool = False,
        zbl_cutoff_p: float | None = None,
    ) -> None:
        if radial not in ("bessel", "spline"):
            raise ValueError(f"`radial` is {radial!r} but must be 'bessel' or 'spline'")
        harmonics = irreps_edge_sh or nequip_models.harmonics_up_to(l_max)
        allowed = tensor_track_allowed_irreps
        if allowed is None:
            allowed = "+".join(f"1x{d}{sign}" for d in range(l_max + 1) for sign in "eo") if parity else harmonics
        embedding: dict[str, Any] = {"num_splines": num_splines, "spline_span": spline_span}
        if radial == "bessel":
            embedding = {
                "num_bessels": num_bessels, "bessel_trainable": bessel_trainable,
                "polynomial_cutoff_p": polynomial_cutoff_p,
            }  # fmt: skip
        options = {
            "num_layers": num_layers, "num_scalar_features": num_scalar_features,
            "num_tensor_features": num_tensor_features, "irreps_edge_sh": harmonics,
            "tensor_track_allowed_irreps": allowed, "radial_chemical_embed_dim": radial_chemical_embed_dim,
            "scalar_embed_mlp_hidden_layers_depth": scalar_embed_mlp_hidden_layers_depth,
            "scalar_embed_mlp_hidden_layers_width": scalar_embed_mlp_hidden_layers_width,
            "scalar_embed_mlp_nonlinearity": scalar_embed_mlp_nonlinearity,
            "allegro_mlp_hidden_layers_depth": allegro_mlp_hidden_layers_depth,
            "allegro_mlp_hidden_layers_width": allegro_mlp_hidden_layers_width,
            "allegro_mlp_nonlinearity": allegro_mlp_nonlinearity,
            "readout_mlp_hidden_layers_depth": readout_mlp_hidden_layers_depth,
            "readout_mlp_hidden_layers_width": readout_mlp_hidden_layers_width,
            "readout_mlp_nonlinearity": readout_mlp_nonlinearity,
            "tp_path_channel_coupling": tp_path_channel_coupling,
            "weight_individual_irreps": weight_individual_irreps, "forward_normalize": forward_normalize,
            "per_edge_type_cutoff": None if per_edge_type_cutoff is None else dict(per_edge_type_cutoff),
            "per_type_energy_scales_trainable": per_type_energy_scales_trainable, "zbl_cutoff_p": zbl_cutoff_p,
        }  # fmt: skip
        target = {"bessel": "TwoBodyBesselScalarEmbed", "spline": "TwoBodySplineScalarEmbed"}[radial]
        embed = {"_target_": f"allegro.nn.{target}", **embedding}
        super().__init__(elements, cutoff, {**options, "radial_chemical_embed": embed})
        self._config |= {"radial": radial, **embedding, **options}
        self.receptive_radius = self.cutoff

    @staticmethod
    def _builder() -> Any:
        from allegro.model.allegro_models import FullAllegroModel

        return FullAllegroModel

    @staticmethod
    def _settings(parts: Mapping[str, Any]) -> dict[str, Any]:
        return nequip_models.allegro_settings(parts)
