"""Hosts are known by name, and imported only when asked for."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from torch import nn
from typer.testing import CliRunner

from farfield.cli import app
from farfield.hosts import registry
from farfield.hosts.augment import augment
from farfield.hosts.registry import HOSTS, HostInfo, adapter, host_of
from farfield.potentials.backbones import OURS, backbone_class


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> str:
    """A host that has an adapter but whose package is nowhere installed."""
    info = HostInfo("mace", "mace-torch", "no_such_package", "1.0", ("scalars",))
    monkeypatch.setitem(registry.HOSTS, "mace", info)
    return info.name


def test_a_missing_host_says_how_to_get_it(absent: str) -> None:
    for use in (lambda: adapter(absent), lambda: backbone_class(absent)([1], 3.0)):
        with pytest.raises(ImportError, match=r"mace-torch.*pip install 'farfield\[mace\]'"):
            use()


def test_unknown_hosts_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'maze'.*mace"):
        adapter("maze")


def test_a_host_without_an_adapter_says_why() -> None:
    with pytest.raises(ValueError, match="sympy"):
        adapter("schnetpack")


def test_a_model_of_no_host_is_refused() -> None:
    with pytest.raises(ValueError, match="torch.nn.modules.linear.Linear"):
        host_of(nn.Linear(2, 2))


def test_a_file_needs_a_name_and_trust(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name"):
        augment(tmp_path / "x.model")


def test_every_host_is_announced_in_the_project(repository: Path) -> None:
    """Entry points, extras and the tested version in the sessions agree with what `farfield hosts` says."""
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["farfield.backbones"] == OURS
    sessions = (repository / "noxfile.py").read_text()
    for name, info in HOSTS.items():
        if info.gives:
            assert any(line.startswith(info.package) for line in project["optional-dependencies"][name])
            assert f"{info.package}=={info.tested}" in sessions
        else:
            assert name not in OURS


def test_the_command_lists_hosts_without_importing_them() -> None:
    shown = CliRunner().invoke(app, ["hosts"])
    assert shown.exit_code == 0
    for info in HOSTS.values():
        assert info.name in shown.stdout
        assert info.tested in shown.stdout
    assert re.search(r"schnetpack.*\n\s+no adapter: .*sympy", shown.stdout)
    code = "import sys; from farfield.cli import app; app(['hosts'], standalone_mode=False); print(sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {info.module for info in HOSTS.values()} & set(re.findall(r"'(\w+)'", run.stdout.splitlines()[-1]))
