"""The truth test's pieces: what is asked of a model, and what is written."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from ase import Atoms

pytest.importorskip("openmm", reason="OpenMM is not here: pip install farfield[peptides]")


@pytest.fixture(scope="module")
def truth(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("truth", repository / "benchmarks" / "truth.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["truth"] = module
    spec.loader.exec_module(module)
    return module


def test_where_charges_are_constant_nothing_is_left_to_explain(truth: ModuleType) -> None:
    rng = np.random.default_rng(1)
    charges, polarizabilities = {1: 0.3, 8: -0.6}, {1: 0.5, 8: 0.8}
    frames = []
    for count in (1, 2, 3):
        frame = Atoms("OHH" * count, rng.normal(size=(3 * count, 3)))
        own = np.array([charges[z] for z in frame.numbers])
        frame.arrays["bec"] = (own[:, None, None] * np.eye(3)).reshape(-1, 9)
        total = sum(polarizabilities[z] for z in frame.numbers)
        frame.info |= {"ref_dipole": own @ frame.positions, "polarizability": total * np.eye(3).ravel()}
        frames.append(frame)
    scores = truth.constant_answers(frames)
    for name in truth.ANSWERS.values():
        assert scores[f"{name}_r2"] == pytest.approx(1.0)
        assert scores[f"{name}_rmse"] == pytest.approx(0.0, abs=1e-7)


def test_the_anisotropy_is_what_a_sphere_lacks(truth: ModuleType) -> None:
    matrix = np.diag([1.0, 2.0, 6.0])
    assert np.allclose(truth.traceless(matrix.reshape(1, 9)), np.diag([-2.0, -1.0, 3.0]))


def test_every_configuration_is_trained_and_asked(truth: ModuleType, tmp_path: Path) -> None:
    setting = truth.Setting(clusters=4, boxes=0, kept=4, epochs=1)
    result = truth.run(setting, ["q", "q+alpha"], tmp_path)
    stiff, polarizable = (result["configurations"][name] for name in ("q", "q+alpha"))
    assert stiff["polarizability_r2"] is None
    for name in ("dipole", "born", "polarizability", "anisotropy"):
        assert polarizable[f"{name}_rmse"] > 0
    assert json.loads(json.dumps(result)) == result
    assert result["constant"]["born_r2"] > 0.5
