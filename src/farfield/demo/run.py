"""The demo from training to report."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from farfield.demo.curves import Curve, make_curves, molecule_charges, pairs_of
from farfield.demo.page import print_tables, write_page
from farfield.demo.pictures import save_all

if TYPE_CHECKING:
    from farfield.evaluation.evaluate import Evaluation
    from farfield.model import Model

#: Name of each model and what it changes in the configuration.
TWINS: dict[str, dict[str, Any]] = {"short-range": {"long_range": None}, "long-range": {}}


@dataclass(frozen=True, eq=False)
class DemoResult:
    """What a demo leaves.

    Attributes
    ----------
    page
        The report, ``index.html``.
    evaluations
        Each model on the frames held back.
    curves
        Dissociation curves held back.
    molecule_charges
        By molecule: true charge, and mean and standard deviation of the learned one (e).
    pictures
        Pictures by name.
    seconds
        How long it took.
    """

    page: Path
    evaluations: dict[str, Evaluation]
    curves: list[Curve]
    molecule_charges: dict[str, tuple[float, float, float]]
    pictures: dict[str, Path]
    seconds: float


def demo_config(name: str, runs: Path, overrides: Sequence[str] = ()) -> Any:
    """Make the configuration of one of the `TWINS`.

    Parameters
    ----------
    name
        ``short-range`` or ``long-range``.
    runs
        Directory under which the run's directory is made.
    overrides
        Changes such as ``epochs=2``.
    """
    import yaml

    from farfield.training.reading import apply_overrides, parse_config

    text = resources.files("farfield.demo").joinpath("config.yaml").read_text(encoding="utf-8")
    values = apply_overrides(yaml.safe_load(text), overrides)
    values["name"], values["output"] = name, str(runs)
    values["model"] |= TWINS[name]
    return parse_config(values, "the demo's configuration")


def run_demo(
    output: str | Path = "demo-report",
    *,
    overrides: Sequence[str] = (),
    quiet: bool = False,
    overview: str | Path | None = None,
) -> DemoResult:
    """Train a short-range and a long-range model on the shipped set, compare them, and write a report.

    Parameters
    ----------
    output
        Directory of the report; the models (``short-range.ff``, ``long-range.ff``) and training logs go there too.
    overrides
        Changes to both configurations, such as ``epochs=2``.
    quiet
        Show nothing.
    overview
        Where to write the overview picture besides.

    Returns
    -------
    DemoResult

    Raises
    ------
    ConfigError
        If an override is not valid.
    """
    from rich.console import Console

    from farfield.model import load
    from farfield.training.run import train

    started = time.monotonic()
    console = Console(quiet=quiet, highlight=False)
    output = Path(output)
    configs = {name: demo_config(name, output / "runs", overrides) for name in TWINS}
    output.mkdir(parents=True, exist_ok=True)
    console.print("[bold]farfield demo[/]: ions and polar molecules; energies and forces only")
    models: dict[str, Model] = {}
    for name, config in configs.items():
        console.print(f"training the [bold]{name}[/] model ({config.epochs} epochs)")
        # A demo starts afresh: the run of an earlier demo is replaced, and nothing else.
        shutil.rmtree(config.directory, ignore_errors=True)
        result = train(config, quiet=quiet)
        if result.model is None:
            raise KeyboardInterrupt
        shutil.copyfile(result.model, output / f"{name}.ff")
        models[name] = load(output / f"{name}.ff")
    console.print("comparing both with what was held back")
    done = compare(models, output, started=started)
    if overview is not None:
        shutil.copyfile(done.pictures["overview"], overview)
    print_tables(console, done.curves, done.evaluations, done.molecule_charges)
    console.print(
        f"{done.seconds / 60:.1f} minutes. Report: {done.page}; models beside it: short-range.ff, long-range.ff",
        soft_wrap=True,
    )
    return done


def compare(models: Mapping[str, Model], output: Path, *, started: float | None = None) -> DemoResult:
    """Compare the twins with what was held back from their training, and write the report.

    Parameters
    ----------
    models
        The trained models by their names in `TWINS`.
    output
        Directory of the report.
    started
        When the demo started (``time.monotonic()``), for the time that the report states.
    """
    from farfield.atoms.structures import read_structures
    from farfield.datasets.registry import find_dataset
    from farfield.evaluation.evaluate import evaluate

    started = time.monotonic() if started is None else started
    frames = {part: read_structures(find_dataset(f"demo/{part}")) for part in ("train", "test")}
    evaluations = {}
    for name, model in models.items():
        with warnings.catch_warnings():
            # That the short-range model has no charges is what the demo shows.
            warnings.simplefilter("ignore", UserWarning)
            evaluations[name] = evaluate(model, "demo/test", total_charge=None, name=name)
    curves = make_curves(frames["test"], models, pairs_of(frames["train"]))
    known = {
        atoms.info["molecules"]: float(atoms.info["total_charge"])
        for atoms in frames["train"]
        if len(atoms.info["molecules"].split()) == 1
    }
    charges = molecule_charges(frames["test"], models["long-range"], known)
    trained_range = float(np.ceil(max(atoms.info.get("distance", 0.0) for atoms in frames["train"])))
    drawn = save_all(output, curves, evaluations, trained_range)
    cutoff = models["long-range"].potential.cutoff
    seconds = time.monotonic() - started
    page = write_page(output, curves, evaluations, charges, drawn, cutoff, len(frames["train"]), seconds)
    return DemoResult(page, evaluations, curves, charges, drawn, seconds)
