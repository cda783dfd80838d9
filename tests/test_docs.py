"""What the documentation shows is true: its examples run and say what their text says."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ase.build import molecule as named_molecule
from small_models import small_model


@pytest.fixture
def examples(repository: Path) -> Iterator[Path]:
    """Folder of the gallery; what an example sets for all of torch is set back."""
    dtype = torch.get_default_dtype()
    state = torch.get_rng_state()
    yield repository / "docs" / "examples"
    torch.set_default_dtype(dtype)
    torch.set_rng_state(state)
    import matplotlib.pyplot as plt

    plt.close("all")


def test_your_own_model_learns_the_charges(examples: Path) -> None:
    names = runpy.run_path(str(examples / "1_your_own_model.py"))
    assert names["errors"]["with far field"] < 0.5 * names["errors"]["short range"]
    assert names["learned"]["Na"] == pytest.approx(1.0, abs=0.1)
    assert names["learned"]["Cl"] == pytest.approx(-1.0, abs=0.1)


def test_coulomb_sum_gives_madelung_constants(examples: Path) -> None:
    names = runpy.run_path(str(examples / "2_coulomb_sum.py"))
    torch.testing.assert_close(names["madelung"], torch.tensor([1.747564594633, 1.762674773070]), rtol=1e-8, atol=0)


def test_another_host_has_exact_forces(examples: Path) -> None:
    names = runpy.run_path(str(examples / "3_another_host.py"))
    assert names["forces"][0, 0] == pytest.approx(-names["slope"], rel=1e-6)
    assert abs(names["forces"]).max() > 1e-3


def test_quickstart_runs(repository: Path) -> None:
    """The Python of the quickstart, with the model that it names."""
    from farfield import zoo

    if "dipeptides" not in zoo.names():
        pytest.skip("the model `dipeptides` is not in this checkout")
    text = (repository / "docs" / "quickstart.md").read_text()
    block = next(code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "ff.load" in code)
    names: dict = {}
    exec(block, names)  # noqa: S102 - our own page
    charges = names["atoms"].get_charges()
    oxygen = names["atoms"].get_atomic_numbers() == 8
    assert charges[oxygen].item() < 0 < charges[names["atoms"].get_atomic_numbers() == 1].max()


def test_readme_names_what_there_is(repository: Path) -> None:
    """Every command and only these; every public name that its Python takes from farfield."""
    import typer.main

    import farfield
    from farfield.cli import app

    text = (repository / "README.md").read_text()
    commands = set(typer.main.get_command(app).commands)
    named = set(re.findall(r"^farfield (\w+)", text, re.MULTILINE))
    assert named <= commands
    assert commands - named <= {"demo"}  # that one is `make demo` there
    names = re.findall(r"\bff\.(\w+)", text)
    assert len(names) > 4
    assert [name for name in names if not hasattr(farfield, name)] == []


def test_ase_page_runs(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All Python of the page, on files of the names that it has; a notice that ASE drops something is an error."""
    pytest.importorskip("ase", minversion="3.29")
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("model", "model-1", "model-2", "model-3")):
        small_model(seed, card={"epsilon_infinity": 1.78}).save(f"{name}.ff")
    water = named_molecule("H2O")
    water.center(vacuum=4.0)
    water.pbc = True
    water.write("water.xyz")
    text = (repository / "docs" / "ase.md").read_text().replace("run(1000)", "run(3)")
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)  # noqa: S102 - our own page
    assert abs(names["atoms"].get_momenta()).max() > 0
    assert names["atoms"].calc.results["forces_std"].max() > 0


def test_every_example_is_tested(examples: Path) -> None:
    tested = Path(__file__).read_text()
    assert [path.name for path in examples.glob("*.py") if f'"{path.name}"' not in tested] == []


def test_links_between_pages_lead_somewhere(repository: Path) -> None:
    pages = [*repository.glob("*.md"), *(repository / "docs").rglob("*.md")]
    written = [page for page in pages if not {"_build", "generated", "gallery"} & set(page.parts)]
    broken = [
        f"{page.name}: {target}"
        for page in written
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert broken == []
