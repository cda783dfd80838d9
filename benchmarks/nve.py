"""Energy conservation of a model in molecular dynamics at constant energy.

    python benchmarks/nve.py MODEL STRUCTURE [--picoseconds 10] [--step 0.5] [--temperature 300] [--seed 0]
        [--repeat 1 1 1] [--record nve.csv]

Velocity Verlet in float64 from Maxwell–Boltzmann velocities without drift of the centre of mass. Prints the drift of
the total energy (slope of a straight line through it, times the length of the run), its fluctuation about that line,
both in meV/atom, the temperatures of the first and last tenth, how the long range was summed, and the time per step.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from typing import Any

import ase.io
import numpy as np
import torch
from ase import units
from ase.md.velocitydistribution import Stationary
from ase.md.verlet import VelocityVerlet

import farfield as ff
from farfield.electrostatics.plan import CoulombPlan, MeshGroup


def watch_plans(calculator: ff.Calculator) -> list[str]:
    """Return a list to which every plan of the long-range sum that is made from now on is added in words."""
    plans: list[str] = []
    long_range = calculator.models[0].potential.long_range
    if long_range is None:
        return plans
    prepare = long_range.coulomb.prepare

    def watched(*given: Any) -> CoulombPlan:
        plan = prepare(*given)
        for group in plan.groups:
            name = type(group).__name__.removesuffix("Group").lower()
            mesh = f" of {group.shapes[0]} points, order {group.orders[0]}" if isinstance(group, MeshGroup) else ""
            plans.append(name + mesh)
        return plan

    long_range.coulomb.prepare = watched
    return plans


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("structure", help="a file that ase.io.read understands; its first frame is taken")
    parser.add_argument("--picoseconds", type=float, default=10.0)
    parser.add_argument("--step", type=float, default=0.5, help="time step (fs)")
    parser.add_argument("--temperature", type=float, default=300.0, help="of the initial velocities (K)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeat", type=int, nargs=3, default=(1, 1, 1), help="copies of the cell along its vectors")
    parser.add_argument("--record", help="CSV file: time (ps), change of the total energy (meV/atom), temperature (K)")
    options = parser.parse_args()

    atoms = ase.io.read(options.structure, index=0).repeat(options.repeat)
    atoms.calc = ff.Calculator(options.model, dtype=torch.float64)
    plans = watch_plans(atoms.calc)
    spread = np.sqrt(units.kB * options.temperature / atoms.get_masses())
    atoms.set_velocities(np.random.default_rng(options.seed).normal(size=(len(atoms), 3)) * spread[:, None])
    Stationary(atoms)

    table = None
    if options.record:  # written as it goes: of a run that is stopped, what there was is left
        table = open(options.record, "w", buffering=1, encoding="utf-8")  # noqa: SIM115 - open while it runs
        table.write("ps,meV/atom,K\n")

    energies: list[float] = []
    temperatures: list[float] = []
    dynamics = VelocityVerlet(atoms, options.step * units.fs)

    def record() -> None:
        energies.append(atoms.get_total_energy() / len(atoms) * 1000.0)
        temperatures.append(atoms.get_temperature())
        if table is not None:
            time_now = (len(energies) - 1) * options.step / 1000.0
            table.write(f"{time_now:.6g},{energies[-1] - energies[0]:.6f},{temperatures[-1]:.2f}\n")
        if len(energies) % 1000 == 0:
            now = len(energies) * options.step / 1000.0
            print(f"{now:6.2f} ps  {energies[-1] - energies[0]:+.4f} meV/atom  {temperatures[-1]:.0f} K", flush=True)

    dynamics.attach(record)
    steps = round(options.picoseconds * 1000.0 / options.step)
    start = time.perf_counter()
    dynamics.run(steps)
    wall = time.perf_counter() - start
    if table is not None:
        table.close()

    t = np.arange(len(energies)) * options.step / 1000.0
    slope, offset = np.polyfit(t, energies, 1)
    rest = np.array(energies) - (slope * t + offset)
    tenth = max(len(energies) // 10, 1)
    print(f"{len(atoms)} atoms, {steps} steps of {options.step} fs, model {options.model}")
    print(f"drift        {slope * t[-1]:+.4f} meV/atom over {t[-1]:.2f} ps")
    print(f"fluctuation  {rest.std():.4f} meV/atom (standard deviation about the line)")
    print(
        f"temperature  {np.mean(temperatures[:tenth]):.0f} K at first, {np.mean(temperatures[-tenth:]):.0f} K at last"
    )
    for plan, times in Counter(plans).items():
        print(f"long range   {plan}, prepared {times} time(s)")
    print(f"neighbours   found {atoms.calc.neighbors.builds} times; {wall / steps * 1000.0:.1f} ms a step")


if __name__ == "__main__":
    main()
