"""Promises that the repository's own files make."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import subprocess
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml

import farfield

ROOMS = "atoms electrostatics potentials hosts observables zoo datasets training evaluation engines spectra compat"


@pytest.fixture(scope="module")
def project(repository: Path) -> dict:
    return tomllib.loads((repository / "pyproject.toml").read_text())


def test_version_is_the_same_everywhere(repository: Path, project: dict) -> None:
    citation = yaml.safe_load((repository / "CITATION.cff").read_text())
    assert project["project"]["version"] == farfield.__version__ == citation["version"]


def test_readme_and_citation_name_the_same_papers(repository: Path) -> None:
    citation = yaml.safe_load((repository / "CITATION.cff").read_text())
    cited = {paper["url"].rsplit("/", 1)[1] for paper in citation["references"]}
    section = (repository / "README.md").read_text().split("## Citing")[1].split("##")[0]
    backbone = "2402.07472"  # the potential that is built in, not the method
    assert set(re.findall(r"\d{4}\.\d{5}", section)) == cited - {backbone}


def test_every_dependency_is_pinned(repository: Path, project: dict) -> None:
    pinned = {
        re.split("==", line)[0].lower().replace("_", "-")
        for line in (repository / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    }
    extras = project["project"]["optional-dependencies"]
    needed = project["project"]["dependencies"] + extras["test"] + extras["docs"] + extras["lint"]
    names = {re.match(r"[A-Za-z0-9-]+", requirement)[0].lower() for requirement in needed}
    assert names <= pinned


def test_constraints_pin_no_cuda_build(repository: Path) -> None:
    text = (repository / "constraints.txt").read_text()
    assert "nvidia-" not in text
    assert re.search(r"^torch==[0-9.]+$", text, re.MULTILINE)


def test_torch_is_no_build_requirement(project: dict) -> None:
    # pip builds in an environment of its own, where 'torch' would mean the newest CUDA build
    assert not [entry for entry in project["build-system"]["requires"] if "torch" in entry]


@pytest.mark.parametrize("room", ROOMS.split())
def test_every_room_says_what_it_is(repository: Path, room: str) -> None:
    first = (repository / "src" / "farfield" / room / "__init__.py").read_text()
    assert first.startswith('"""')


def test_built_in_backbone_is_found_by_entry_point() -> None:
    found = entry_points(group="farfield.backbones")
    assert "cace" in found.names
    assert found["cace"].load().__name__ == "CACE"


@pytest.mark.parametrize("folder", ["benchmarks", "scripts", "docs/examples"])
def test_what_runs_by_hand_imports_what_there_is(repository: Path, folder: str) -> None:
    """Nothing else would notice a name of farfield that moved away under a script."""
    scripts = sorted((repository / folder).rglob("*.py"))
    assert scripts
    for script in scripts:
        for node in ast.walk(ast.parse(script.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "farfield":
                module = importlib.import_module(node.module)
                for alias in node.names:
                    part = hasattr(module, "__path__") and importlib.util.find_spec(f"{node.module}.{alias.name}")
                    assert part or hasattr(module, alias.name), (
                        f"{script.name} imports {alias.name} from {node.module}, which has no such name"
                    )


def test_make_help_lists_the_readme_commands(repository: Path) -> None:
    run = subprocess.run(["make", "help"], cwd=repository, check=True, capture_output=True, text=True)
    listed = {line.split()[0] for line in run.stdout.splitlines() if line.startswith("  ")}
    assert {"demo", "test", "docs", "lint", "bench", "help"} <= listed


def test_no_path_of_one_machine(repository: Path) -> None:
    """Committed text names no absolute path of the machine it was written on."""
    files = subprocess.run(["git", "ls-files"], cwd=repository, capture_output=True, text=True, check=False)
    if files.returncode:
        pytest.skip("not a git checkout")
    home = re.compile(r"(?<![\w.\]}])/(?:home|root|work|Users)/\w")
    found = []
    for name in files.stdout.splitlines():
        path = repository / name
        if path.suffix in {".py", ".md", ".toml", ".yaml", ".txt", ".cff", ".cfg"} and path.is_file():
            found += [f"{name}: {line}" for line in path.read_text().splitlines() if home.search(line)]
    assert not found
