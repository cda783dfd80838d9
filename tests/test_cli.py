"""The command line: what it prints and writes, and that mistakes end in one line and exit code 2."""

import json
import os
import subprocess
import sys

import ase.io
import numpy as np
import pytest
from ase.build import molecule
from labelled_structures import water_dimers
from small_models import small_model
from typer.testing import CliRunner

import farfield
from farfield.cli import app

runner = CliRunner()


def run(*arguments):
    return runner.invoke(app, [str(argument) for argument in arguments])


def failed(result, *words):
    """One line on standard error, no traceback, exit code 2."""
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr
    return True


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.ff"
    small_model().save(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "water.extxyz"
    ase.io.write(path, water_dimers(8))
    return path


def test_version_and_help():
    assert run("--version").output.strip() == f"farfield {farfield.__version__}"
    listed = run("--help").output
    for command in ("train", "evaluate", "born", "inspect", "models", "demo"):
        assert command in listed
        assert run(command, "--help").exit_code == 0


def test_help_loads_nothing_heavy():
    code = "import sys, farfield.cli; sys.exit(any(name in sys.modules for name in ('torch', 'ase', 'matplotlib')))"
    environment = {**os.environ, "FARFIELD_SHAPE_CHECKS": "0"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_evaluate(model, data, tmp_path):
    result = run("evaluate", model, data, "--json", tmp_path / "m.json", "--report", tmp_path / "report")
    assert result.exit_code == 0, result.output
    for word in ("Forces", "meV/Å", "Born charges"):
        assert word in result.output
    found = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))
    assert found["model"] == str(model)
    assert found["n_systems"] == 8
    assert set(found["metrics"]) == {"energy_per_atom", "forces", "dipole", "quadrupole", "charges", "born_charges"}
    assert (tmp_path / "report" / "index.html").exists()


def test_evaluate_compares_a_part(model, data, tmp_path):
    assert run("evaluate", model, data, "--last", "3", "--json", tmp_path / "m.json").exit_code == 0
    assert json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))["n_systems"] == 3


def test_evaluate_takes_a_registered_set(model, tmp_path, monkeypatch, data):
    (tmp_path / "03_water_rpbe_d3").mkdir()
    ase.io.write(tmp_path / "03_water_rpbe_d3" / "water64_EF.extxyz.gz", ase.io.read(data, ":"), format="extxyz")
    monkeypatch.setenv("FARFIELD_DATA", str(tmp_path))
    result = run("evaluate", model, "water/rpbe-d3", "--json", tmp_path / "m.json")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))["data"] == "water/rpbe-d3"


def test_born_writes_what_evaluate_reads(model, data, tmp_path):
    result = run("born", model, data, "--output", tmp_path / "born.extxyz")
    assert result.exit_code == 0, result.output
    frames = ase.io.read(tmp_path / "born.extxyz", ":")
    assert len(frames) == 8
    # displacement first: the sum over atoms of either order is zero, the tensors themselves are not symmetric
    born = farfield.load(model).compute(frames[0], ["born_charges"])["born_charges"]
    np.testing.assert_allclose(frames[0].arrays["bec"].reshape(-1, 3, 3), born.swapaxes(1, 2), rtol=1e-6, atol=1e-6)
    back = run(
        "evaluate", model, tmp_path / "born.extxyz", "--column", "charges=charges", "--json", tmp_path / "m.json"
    )
    assert back.exit_code == 0, back.output
    metrics = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))["metrics"]
    assert set(metrics) == {"charges", "born_charges"}
    assert metrics["born_charges"]["r2"] == pytest.approx(1.0)


def test_born_in_the_other_order(model, data, tmp_path):
    files = [tmp_path / "one.extxyz", tmp_path / "other.extxyz"]
    assert run("born", model, data, "--output", files[0]).exit_code == 0
    assert run("born", model, data, "--output", files[1], "--order", "polarization-first").exit_code == 0
    one, other = (ase.io.read(file, "0").arrays["bec"].reshape(-1, 3, 3) for file in files)
    np.testing.assert_array_equal(one, other.swapaxes(1, 2))


def test_inspect(data, tmp_path):
    result = run("inspect", data, "--json", tmp_path / "found.json")
    assert result.exit_code == 0, result.output
    assert "nothing looks wrong" in result.output
    assert "cutoff" in result.output
    assert json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["findings"]


def test_models():
    from farfield import zoo

    result = run("models")
    assert result.exit_code == 0, result.output
    for name in zoo.names():
        assert name in result.output


def test_unreadable_arguments(model, data, tmp_path):
    assert failed(run("evaluate", "nonsense", data), "nonsense")
    assert failed(run("evaluate", tmp_path / "none.ff", data), "none.ff")
    assert failed(run("evaluate", data, data), "not a farfield model")
    assert failed(run("evaluate", model, "no/such/set"), "neither a file nor a registered data set")
    (tmp_path / "broken.extxyz").write_text("3\n\nH 0 0\n")
    assert failed(run("evaluate", model, tmp_path / "broken.extxyz"), "broken.extxyz")
    assert failed(run("inspect", tmp_path / "broken.extxyz"), "broken.extxyz")
    assert failed(run("train", tmp_path / "none.yaml"), "none.yaml")


def test_options_that_are_none(model, data, tmp_path):
    assert failed(run("evaluate", model, data, "--born-order", "first"), "polarization-first")
    assert failed(run("evaluate", model, data, "--column", "force=f"), "'force'", "forces")
    assert failed(run("evaluate", model, data, "--column", "forces"), "must look like")
    assert failed(run("evaluate", model, data, "--unit", "energy=parsec"), "parsec")
    assert failed(run("inspect", data, "--stress-sign", "up"), "tensile")
    assert failed(run("born", model, data, "--output", tmp_path / "born.png"), ".extxyz")
    assert failed(run("born", model, data, "--output", tmp_path / "nowhere" / "b.extxyz"), "no folder")
    assert run("evaluate", model).exit_code == 2
    assert run("nonsense").exit_code == 2


def test_elements_the_model_does_not_know(model, tmp_path):
    atoms = molecule("CH3SH")
    ase.io.write(tmp_path / "thiol.extxyz", atoms)
    assert failed(run("born", model, tmp_path / "thiol.extxyz", "--output", tmp_path / "b.extxyz"), "S")
    assert not (tmp_path / "b.extxyz").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thiol.extxyz"]


def test_traceback_on_request(model, monkeypatch):
    monkeypatch.setenv("FARFIELD_TRACEBACK", "1")
    assert isinstance(run("evaluate", model, "no/such/set").exception, FileNotFoundError)


def test_main_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "farfield.cli", "evaluate", "nonsense", "nothing"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "FARFIELD_SHAPE_CHECKS": "0"},
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")
