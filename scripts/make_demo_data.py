"""Make the quantum-chemistry set that `farfield demo` trains on: src/farfield/datasets/data/demo/*.extxyz.gz.

After ``pip install farfield[demo-data]``: ``OMP_NUM_THREADS=1 python scripts/make_demo_data.py``; it takes about
half an hour of one core. Every frame has a random generator of its own, so that the same frames come out again. The
parts are in ``demo_data/``: what is in the set, geometries, Hartree–Fock, labels, and which frames go where.

What is in the set, and why
---------------------------
Eight small molecules of H, C, N and O: two cations, two anions, four polar molecules. Their dimers at 3 to 15 Å between
the centres of mass, in random orientations; water clusters and ions with a few waters. All are open systems.

Geometries come from molecular dynamics of the separate molecules (and of the clusters) with GFN2-xTB; labels from
restricted Hartree–Fock in the 6-31G* basis with density fitting. Hartree–Fock is chosen because it has no
self-interaction error: two ions that are pulled apart in vacuum keep whole charges. GFN2-xTB and semi-local functionals
do not: they move .1 e from the anion to the cation at 12 Å, since there the anion's highest level lies above the
cation's lowest empty one. The script checks it: frames whose molecules carry charges that are not whole numbers when
far apart are refused.

Energies are relative to the separate molecules, each relaxed, so that a model need not learn formation energies. Born
charges dμ_b/dr_na are finite differences of the forces in a uniform field, dF_na/dE_b: the same second derivative of
the energy. The script checks them once against finite differences of the dipole. They stand with the displacement first
in the column ``bec``. Reference atomic charges (``esp_charges``) are fitted to the electrostatic potential around the
molecule (Merz and Kollman's shells, with a weak restraint towards zero).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read, write

from demo_data.contents import SEED, TRAINING_FRAMES
from demo_data.frames import plan
from demo_data.geometries import Pool
from demo_data.labels import Labeller, check_born_charges, separate_energies

HERE = Path(__file__).resolve().parents[1] / "src" / "farfield" / "datasets" / "data" / "demo"


def prepare(cache: Path, scale: float) -> dict[str, list[Atoms]]:
    """Make the plan and the energies of the relaxed molecules, or read them where an earlier run left them."""
    splits = ("train", "val", "test")
    energies = cache / "separate.json"
    if not energies.exists():
        pool = Pool()
        difference = check_born_charges(pool)
        print(f"Born charges: field against displacement differ by at most {difference:.1e} e", flush=True)
        if difference > 5e-4:
            sys.exit("the two finite differences disagree")
        for split, frames in plan(pool, scale).items():
            write(cache / f"plan-{split}.extxyz", frames, format="extxyz")
        energies.write_text(json.dumps(separate_energies(pool), indent=1) + "\n", encoding="utf-8")
    return {split: read(cache / f"plan-{split}.extxyz", ":") for split in splits}


def main() -> None:
    """Make the three files and a summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=HERE)
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the training frames, to try things out")
    parser.add_argument("--cache", type=Path, help="directory that keeps plan and labelled frames, to go on later")
    parser.add_argument("--most", type=int, default=TRAINING_FRAMES, help="label at most so many frames of a file")
    parser.add_argument("--splits", nargs="*", default=["train", "val", "test"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        cache = arguments.cache or Path(temporary)
        cache.mkdir(parents=True, exist_ok=True)
        arguments.output.mkdir(parents=True, exist_ok=True)
        make(arguments.output, cache, arguments.scale, arguments.splits, arguments.most)


def make(output: Path, cache: Path, scale: float, parts: list[str], most: int | None) -> None:
    """Plan, label and write."""
    started = time.time()
    splits = prepare(cache, scale)
    labeller = Labeller(json.loads((cache / "separate.json").read_text(encoding="utf-8")))
    print(f"{ {name: len(frames) for name, frames in splits.items()} } after {time.time() - started:.0f} s", flush=True)
    for split in parts:
        frames, labelled = splits[split], {}
        # In random order, so that `most` takes some of every kind.
        order = np.random.default_rng([SEED, 6]).permutation(len(frames))[:most]
        for done, index in enumerate(order):
            kept = cache / f"{split}-{index}.extxyz"
            if kept.exists():
                labelled[index] = read(kept)
            elif (frame := labeller(frames[index], kept_back=split == "test")) is not None:
                labelled[index] = frame
                write(kept, frame, format="extxyz")
            if done % 25 == 0:
                print(f"{split} {done}/{len(order)} after {time.time() - started:.0f} s", flush=True)
        write(output / f"{split}.extxyz.gz", [labelled[index] for index in sorted(labelled)], format="extxyz")
    for text in labeller.refused:
        print("refused:", text)
    summary = {"seed": SEED, "separate_molecules_hartree": labeller.separate}
    (output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(f"done after {time.time() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
