"""Train by matgl itself with farfield's far field inside.

Command: python configs/hosts/matgl_training.py data.extxyz
(matgl >= 4.1.2; energies and forces as ASE reads them, in eV and Å, all frames open or all periodic.) It writes
`trained.ff`, a model of farfield, and `trained-matgl`, what matgl's `load_model` reads.
"""

import argparse

import numpy as np
from matgl.graph.data import collate_fn_pes
from matgl.models import TensorNet
from matgl.utils.training import MGLDatasetLoader, MGLPotentialTrainer, fit_element_refs

from farfield.hosts.matgl_training import LongRangeModel, potential_of
from farfield.model import Model


def main() -> None:
    """Train on the file that the command names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--units", type=int, default=64)
    parser.add_argument("--cutoff", type=float, default=5.0)
    options = parser.parse_args()

    data = MGLDatasetLoader.from_extxyz(options.file, cutoff=options.cutoff, save_cache=False)
    references = fit_element_refs(data.structures, data.labels["energies"], data.element_types)
    force_scale = float(np.sqrt(np.mean(np.concatenate(data.labels["forces"]) ** 2)))

    network = TensorNet(
        element_types=data.element_types, cutoff=options.cutoff, units=options.units, is_intensive=False
    )
    # the charge is that of all systems; with graph.total_charge each has its own
    model = LongRangeModel(network, dipoles=True, quadrupoles=True, total_charge="constraint", charge=0.0)
    graphs, lattices, *_ = collate_fn_pes([data[k] for k in range(min(len(data), 20))], include_stress=False)
    model.calibrate(graphs, lattices)
    trainer = MGLPotentialTrainer(
        model,
        stress_weight=0.0,
        data_std=force_scale,  # of the network alone: the long range stays in eV
        batch_size=4,
        max_epochs=options.epochs,
        loader_kwargs={"frac_list": (0.8, 0.1, 0.1), "num_workers": 0},
        trainer_kwargs={"logger": False, "enable_checkpointing": False, "enable_progress_bar": False},
    )
    potential = trainer.fit(data, atomrefs=references, save_path="trained-matgl")
    Model(potential_of(potential)).save("trained.ff")


if __name__ == "__main__":
    main()
