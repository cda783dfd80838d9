"""The benchmark of time against size: the list it writes, the figure it draws, and what it says of what cannot run."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
COLUMNS = {"solver", "n_atoms", "quantity", "dtype", "median_s", "peak_mb", "force_error"}


@pytest.fixture
def scaling(monkeypatch):
    """The benchmark as a module, which times in this process instead of one for each case."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    spec = importlib.util.spec_from_file_location("scaling", REPOSITORY / "benchmarks" / "scaling.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "run_apart", module.measure)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)


def run(scaling, monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["scaling", "--sizes", "24", "--repeat", "1", "--threads", "1", *arguments])
    scaling.main()


def test_list_and_figure_are_written_and_what_is_not_installed_is_reported(scaling, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(scaling.importlib.util, "find_spec", lambda name: None)
    solvers = "farfield,torch-pme,nvalchemi,plain,floor"
    run(scaling, monkeypatch, "--solvers", solvers, "--json", str(tmp_path / "rows.json"))
    rows = json.loads((tmp_path / "rows.json").read_text())
    cases = [(row["solver"], row["quantity"]) for row in rows]
    assert cases == [(s, q) for q in ("forces", "training") for s in ("farfield", "plain", "floor")]
    for row in rows:
        assert set(row) >= COLUMNS
        assert (row["n_atoms"], row["dtype"]) == (24, "float64")
        assert row["median_s"] > 0
        assert row["peak_mb"] > 0
        assert row["solver"] == "floor" or row["force_error"] < 3e-4
    assert (tmp_path / "rows.png").stat().st_size > 0
    printed = capsys.readouterr().out
    assert "torchpme is not installed" in printed
    assert "nvalchemiops is not installed" in printed


def test_the_figure_goes_where_it_is_wanted(scaling, monkeypatch, tmp_path):
    arguments = ["--solvers", "floor", "--quantity", "forces", "--json", str(tmp_path / "rows.json")]
    run(scaling, monkeypatch, *arguments, "--figure", str(tmp_path / "here.pdf"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here.pdf", "rows.json"]


def test_tables_beyond_the_memory_are_reported_and_so_is_a_process_that_dies(scaling, monkeypatch, tmp_path, capsys):
    options = argparse.Namespace(multipoles="q", dtype="float64", device="cpu")
    monkeypatch.setattr(scaling, "memory_of", lambda device: 16.0)
    assert scaling.missing("plain", 1000, "training", options) is None
    assert "GB for its tables" in scaling.missing("plain", 100_000, "forces", options)
    monkeypatch.setattr(scaling, "run_apart", lambda case: "failed: its process was killed")
    run(scaling, monkeypatch, "--solvers", "farfield", "--quantity", "forces", "--json", str(tmp_path / "rows.json"))
    assert "failed: its process was killed" in capsys.readouterr().out
    assert json.loads((tmp_path / "rows.json").read_text()) == []


def test_the_command_runs(tmp_path):
    file = tmp_path / "rows.json"
    command = "-m benchmarks.scaling --sizes 24 --solvers farfield,plain --quantity forces --repeat 1 --json"
    outcome = subprocess.run(
        [sys.executable, *command.split(), str(file)], cwd=REPOSITORY, check=False, capture_output=True, text=True
    )
    assert outcome.returncode == 0, outcome.stderr
    assert [row["solver"] for row in json.loads(file.read_text())] == ["farfield", "plain"]
    assert file.with_suffix(".png").exists()
