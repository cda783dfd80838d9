"""Charged, polar and apolar dimers pulled apart: long-range beside short-range models, class by class.

    python benchmarks/dimers.py [--classes CC CP ...] [--output runs] [--markdown FILE]

Trains twelve small models by configs/dimers-*.yaml (the 7 shortest distances of each class) and prints a table of their
errors on the 3 longest. Runs that are there already are gone on with, not repeated.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from farfield.files import write_text
from farfield.training import read_config, train

CLASSES = ("CC", "CP", "PP", "CA", "PA", "AA")
CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def errors(label: str, twin: str, output: str) -> dict[str, float]:
    """Return the errors of one model on the 3 longest distances, in meV/atom and meV/Å; it is trained if need be."""
    overrides = [f"output={output}", f"name=dimers-{label}-{twin}"]
    if twin == "short":
        overrides.append("model.long_range=null")
    config = read_config(CONFIGS / f"dimers-{label}.yaml", overrides)
    result = train(config, resume=True)
    if result.interrupted:
        sys.exit(130)
    return result.metrics["test"]


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", nargs="+", choices=CLASSES, default=CLASSES)
    parser.add_argument("--output", default="runs")
    parser.add_argument("--markdown", help="write the table to this file, too")
    arguments = parser.parse_args()
    lines = [
        "| class | E short range | E long range | F short range | F long range |",
        "|---|---|---|---|---|",
    ]
    for label in arguments.classes:
        short, far = (errors(label, twin, arguments.output) for twin in ("short", "long"))
        cells = [f"{m[key]:.2f}" for key in ("energy_rmse", "forces_rmse") for m in (short, far)]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    text = "\n".join(lines)
    print(text)
    if arguments.markdown:
        write_text(arguments.markdown, text + "\n")


if __name__ == "__main__":
    main()
