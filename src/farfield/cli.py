"""The command ``farfield``: parses, calls, prints.

Heavy libraries are imported inside the commands, so that ``farfield --help`` answers at once. Mistakes of a user end in
one line on standard error and exit code 2; ``FARFIELD_TRACEBACK=1`` shows where they were noticed.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

import farfield

if TYPE_CHECKING:
    from farfield.datasets.inspect import Inspection
    from farfield.datasets.quantities import Columns, Units
    from farfield.evaluation.evaluate import Evaluation

app = typer.Typer(
    name="farfield",
    help="Long-range electrostatics for machine-learning interatomic potentials.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

#: What a user can cause; anything else is a bug and keeps its traceback.
_USER_ERRORS = (OSError, ValueError, FloatingPointError, ImportError)

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Name of a shipped model or path of a .ff file.")]
DataArgument = Annotated[str, typer.Argument(metavar="DATA", help="Name of a known data set or path of a file.")]
ColumnOption = Annotated[
    list[str],
    typer.Option(
        "--column", metavar="LABEL=NAME", help="Where the file holds a label, e.g. forces=dft_forces. Repeatable."
    ),
]
UnitOption = Annotated[
    list[str],
    typer.Option("--unit", metavar="LABEL=UNIT", help="Unit of a label, e.g. energy=kcal/mol. Repeatable."),
]
BornOrderOption = Annotated[
    str,
    typer.Option(
        help="First index of Born-charge labels: displacement-first or polarization-first.", show_default=True
    ),
]
StressSignOption = Annotated[str, typer.Option(help="Sign of stress labels: tensile (ASE) or compressive.")]


def _epsilon(text: str) -> float | str:
    """Read a dielectric constant, or the word that says that the model's response makes all of it."""
    if text == "explicit":
        return text
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is neither a number nor 'explicit'") from None


EpsilonOption = Annotated[
    Any,
    typer.Option(
        parser=_epsilon,
        metavar="NUMBER",
        help="High-frequency dielectric constant of periodic systems, instead of the model's; or 'explicit', if the "
        "model's own response makes all of it.",
    ),
]
HarmonicsOption = Annotated[int | None, typer.Option(help="Lattice harmonics for Born charges of periodic systems.")]
ExactOption = Annotated[
    bool,
    typer.Option("--exact", help="Repeat periodic cells as far as exact Born charges need (costs memory)."),
]


def main() -> None:
    """Run the command line."""
    app()


def _fail(message: object) -> NoReturn:
    # one line, whatever a library has put into its message
    typer.echo(f"error: {' '.join(str(message).split())}", err=True)
    raise typer.Exit(2)


def _command(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command whose user errors end in one line."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> None:
            try:
                function(*args, **kwargs)
            except _USER_ERRORS as error:
                if os.environ.get("FARFIELD_TRACEBACK"):
                    raise
                _fail(error)

        return app.command(name)(guarded)

    return decorate


def _version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"farfield {farfield.__version__}")
        raise typer.Exit
    return wanted  # what a callback returns becomes the option's value


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Long-range electrostatics for machine-learning interatomic potentials."""


@_command("train")
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="What to train on what.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of this run.")] = False,
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. epochs=10. Repeatable.")
    ] = [],  # noqa: B006 (typer reads the default and copies it)
    quiet: Annotated[bool, typer.Option("--quiet", help="Show nothing.")] = False,
) -> None:
    """Train a model as a configuration says."""
    from farfield.training.run import train_from_yaml

    result = train_from_yaml(config, resume=resume, overrides=overrides, quiet=quiet)
    if result.interrupted:
        raise typer.Exit(130)


@_command("evaluate")
def evaluate(
    model: ModelArgument,
    data: DataArgument,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the metrics as JSON.")] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write index.html, one self-contained page, and its pictures.")
    ] = None,
    column: ColumnOption = [],  # noqa: B006
    unit: UnitOption = [],  # noqa: B006
    born_order: BornOrderOption = "displacement-first",
    stress_sign: StressSignOption = "tensile",
    quadrupole_origin: Annotated[
        str, typer.Option(help="What quadrupole labels are about: centre (geometric), mass, zero or unknown.")
    ] = "centre",
    total_charge: Annotated[
        str, typer.Option(help="Info key of the total charge, 'none' to leave it out, 'auto' for total_charge.")
    ] = "auto",
    first: Annotated[int | None, typer.Option(min=1, help="Compare only so many structures from the front.")] = None,
    last: Annotated[int | None, typer.Option(min=1, help="Compare only so many structures from the back.")] = None,
    epsilon_infinity: EpsilonOption = None,
    harmonics: HarmonicsOption = None,
    exact: ExactOption = False,
    float64: Annotated[bool, typer.Option("--float64", help="Compute in double precision.")] = False,
) -> None:
    """Compare a model with every label that the data have."""
    _choice("--born-order", born_order, ("displacement-first", "polarization-first"))
    _choice("--stress-sign", stress_sign, ("tensile", "compressive"))
    _choice("--quadrupole-origin", quadrupole_origin, ("centre", "mass", "zero", "unknown"))
    columns, units = _columns(column), _units(unit)
    import torch

    from farfield.evaluation.evaluate import evaluate as run
    from farfield.model import load

    loaded = load(model, dtype=torch.float64 if float64 else None)
    with _progress("evaluating") as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # they stand in the notes
        result = run(
            loaded,
            data,
            columns=columns,
            units=units,
            born_order=born_order,  # type: ignore[arg-type]
            stress_sign=stress_sign,  # type: ignore[arg-type]
            quadrupole_origin=quadrupole_origin,  # type: ignore[arg-type]
            total_charge=None if total_charge == "none" else total_charge,
            first=first,
            last=last,
            options=_given(epsilon_infinity=epsilon_infinity, harmonics=harmonics, exact=exact or None),
            name=model,
            progress=progress,
        )
    _print_evaluation(result)
    if json is not None:
        result.write_json(json)
        typer.echo(f"metrics: {json}")
    if report is not None:
        from farfield.evaluation.report import write_report

        typer.echo(f"report: {write_report(result, report)}")


@_command("born")
def born(
    model: ModelArgument,
    data: DataArgument,
    output: Annotated[Path, typer.Option(metavar="FILE.extxyz", help="File to write.")],
    order: Annotated[str, typer.Option(help="First index in the file: displacement-first or polarization-first.")] = (
        "displacement-first"
    ),
    epsilon_infinity: EpsilonOption = None,
    harmonics: HarmonicsOption = None,
    exact: ExactOption = False,
    sum_rule: Annotated[bool, typer.Option("--sum-rule", help="Shift Born charges to add up to the charge.")] = False,
) -> None:
    """Write charges and Born charges of structures as extended XYZ."""
    _choice("--order", order, ("displacement-first", "polarization-first"))
    from farfield.evaluation.born import write_born_charges

    with _progress("computing") as progress, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        written = write_born_charges(
            model,
            data,
            output,
            order=order,  # type: ignore[arg-type]
            options=_given(
                epsilon_infinity=epsilon_infinity, harmonics=harmonics, sum_rule=sum_rule or None, exact=exact or None
            ),
            progress=progress,
        )
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        typer.echo(f"note: {message}", err=True)
    kinds = sorted({atoms.info["screening"] for atoms in written})
    worst = max(atoms.info["bec_sum_rule"] for atoms in written)
    typer.echo(
        f"Born charges of {len(written)} structures ({', '.join(kinds)}): {output}\n"
        f"sum rule: mean excess over the total charge at most {worst:.2g} e per atom"
    )


@_command("inspect")
def inspect(
    data: DataArgument,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write what was found as JSON.")] = None,
    column: ColumnOption = [],  # noqa: B006
    unit: UnitOption = [],  # noqa: B006
    born_order: BornOrderOption = "displacement-first",
    stress_sign: StressSignOption = "tensile",
    fit: Annotated[bool, typer.Option("--fit/--no-fit", help="Make the quick short-range fit.")] = True,
) -> None:
    """Look at data before training: units, signs, duplicates, outliers, charges, and whether long range matters."""
    _choice("--born-order", born_order, ("displacement-first", "polarization-first"))
    _choice("--stress-sign", stress_sign, ("tensile", "compressive"))
    from farfield.datasets.inspect import inspect as run
    from farfield.datasets.quantities import Conventions

    conventions = Conventions(born_charges=born_order, stress=stress_sign)  # type: ignore[arg-type]
    columns, units = _columns(column), _units(unit)
    with _spinner("looking at the data"):
        result = run(data, columns=columns, units=units, conventions=conventions, fit=fit)
    _print_inspection(result)
    if json is not None:
        import json as encoder

        from farfield.files import write_text

        write_text(json, encoder.dumps(result.as_dict(), indent=2, ensure_ascii=False) + "\n")
        typer.echo(f"findings: {json}")


@_command("models")
def models() -> None:
    """List the shipped models."""
    from rich.console import Console

    from farfield import zoo
    from farfield.card import ModelCard
    from farfield.model_file import read_model_file

    if not zoo.names():
        typer.echo("no models are shipped with this installation")
        return
    console = Console(highlight=False)
    for name in zoo.names():
        path = zoo.path(name)
        card = ModelCard.from_json(read_model_file(path)[1]["card"])
        from ase.data import chemical_symbols

        elements = " ".join(chemical_symbols[number] for number in card.elements)
        console.print(f"[bold]{name}[/]  {elements}; cutoff {card.cutoff:g} Å; {path.stat().st_size / 1e6:.1f} MB")
        for line in (card.description, f"trained on {card.training_data}" if card.training_data else "", card.licence):
            if line:
                console.print(f"    {line}", markup=False)


@_command("convert")
def convert(
    source: Annotated[Path, typer.Argument(metavar="FILE.model", help="File in which mace-torch keeps a whole model.")],
    output: Annotated[Path, typer.Argument(metavar="FILE.ff", help="File to write.")],
    trust: Annotated[
        bool, typer.Option("--trust", help="The file is a pickle, which may run any code: you know its origin.")
    ] = False,
) -> None:
    """Write a whole model of mace-torch, a MACELES too, as a farfield model, which holds no code."""
    from farfield.model import load

    if output.suffix != ".ff":
        _fail(f"the file to write is {str(output)!r} but must end in .ff")
    if not source.is_file():
        _fail(f"there is no file {str(source)!r}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # --trust says that its code may run
        model = load(source, trust=trust)
    model.save(output)
    typer.echo(f"{model!r}: {output}")


@_command("hosts")
def hosts() -> None:
    """List the potentials of other packages that can be given a far field."""
    from rich.console import Console

    from farfield.hosts.registry import HOSTS

    console = Console(highlight=False)
    for info in HOSTS.values():
        version = info.installed
        console.print(f"[bold]{info.name}[/]  {info.package} {version or 'not installed'}")
        if not info.gives:
            console.print(f"    no adapter: {info.obstacle}", markup=False)
            continue
        console.print(f"    tested with {info.tested}; gives {', '.join(info.gives)}", markup=False)
        if version is None:
            console.print(f"    {info.install_line}", markup=False)


@_command("demo")
def demo(
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where the report goes.")] = Path("demo-report"),
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the training. Repeatable.")
    ] = [],  # noqa: B006
    quiet: Annotated[bool, typer.Option("--quiet", help="Show nothing.")] = False,
) -> None:
    """Train a short-range and a long-range model on shipped data, and compare them."""
    from farfield.demo import run_demo

    run_demo(output, overrides=overrides, quiet=quiet)


# ---- arguments -----------------------------------------------------------------------------------------------------


def _choice(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        _fail(f"{option} is {value!r} but must be one of {', '.join(allowed)}")


def _pairs(option: str, given: list[str]) -> dict[str, str]:
    pairs = {}
    for item in given:
        key, equals, value = item.partition("=")
        if not (key and equals and value):
            _fail(f"{option} is {item!r} but must look like forces=dft_forces")
        pairs[key] = value
    return pairs


def _columns(given: list[str]) -> Columns | None:
    from farfield.datasets.quantities import Columns

    pairs = _pairs("--column", given)
    _known("--column", pairs, list(Columns.model_fields))
    return Columns(**pairs) if pairs else None  # type: ignore[arg-type]


def _units(given: list[str]) -> Units | None:
    from farfield.datasets.quantities import Units, conversion

    pairs = _pairs("--unit", given)
    _known("--unit", pairs, list(Units.model_fields))
    for key, value in pairs.items():
        conversion(value, key)
    return Units(**pairs) if pairs else None


def _known(option: str, pairs: dict[str, str], allowed: list[str]) -> None:
    for key in pairs:
        if key not in allowed:
            _fail(f"{option} names {key!r}, but must name one of {', '.join(allowed)}")


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


# ---- printing ------------------------------------------------------------------------------------------------------


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on standard error, where that is a terminal; it vanishes at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def _spinner(what: str) -> Iterator[None]:
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


def _print_evaluation(result: Evaluation) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from farfield.evaluation.report import METRICS_HEADER, metrics_rows

    console = Console(highlight=False)
    title = f"{result.model} on {result.data}: {result.n_systems} structures"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    shown = METRICS_HEADER[:-1]  # without the number of values, to fit 80 columns
    for number, name in enumerate(shown):
        table.add_column(name, justify="left" if number < 2 else "right", no_wrap=True)
    for row in metrics_rows(result):
        table.add_row(*row[: len(shown)])
    console.print(table)
    for note in result.notes:
        console.print(Text.assemble(("note: ", "yellow"), note))


def _print_inspection(result: Inspection) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    facts = Table(title=result.name, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in result.facts.items():
        facts.add_row(Text(name, style="dim"), Text(value))
    console.print(facts)
    if result.fit is not None:
        fit = result.fit
        table = Table(
            title=f"Quick short-range fit (linear, to forces only; {fit.n_fitted} frames fitted, "
            f"{fit.n_held_out} held out)",
            title_justify="left",
        )
        table.add_column("cutoff (Å)")
        for cutoff in fit.cutoffs:
            table.add_column(f"{cutoff:g}", justify="right")
        table.add_row("force RMSE (meV/Å)", *(f"{1e3 * value:.3g}" for value in fit.rmse))
        console.print(table)
    if not result.warnings:
        console.print(Text("nothing looks wrong", style="green"))
    for finding in result.findings:
        style = "bold red" if finding.level == "warning" else "dim"
        console.print(Text.assemble((f"{finding.level}: {finding.topic}: ", style), finding.message))


if __name__ == "__main__":
    main()
