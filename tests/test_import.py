"""``import farfield`` is light, and its names are found where the documentation says."""

from __future__ import annotations

import subprocess
import sys

import pytest

import farfield

HEAVY = ["ase", "lightning", "vesin", "pydantic", "scipy", "matplotlib", "typer", "rich", "yaml", "tensorboard"]


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after a statement."""
    code = f"import sys; {statement}; print(' '.join(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(run.stdout.split())


def test_import_loads_nothing_heavy() -> None:
    loaded = modules_after("import farfield")
    assert not loaded & {*HEAVY, "torch"}


def test_core_needs_only_torch_and_numpy() -> None:
    core = "; ".join(f"farfield.{name}" for name in ["AtomicBatch", "Coulomb", "Dispersion", "LongRange", "Multipoles"])
    # torch itself may load some of these; what counts is what farfield adds
    assert not (modules_after(f"import farfield; {core}") - modules_after("import torch")) & set(HEAVY)


@pytest.mark.parametrize("name", farfield.__all__)
def test_public_names_exist(name: str) -> None:
    assert getattr(farfield, name) is not None
    assert name in dir(farfield)


def test_unknown_name_is_refused_by_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Ewald'.*Coulomb"):
        _ = farfield.Ewald
