"""Tests that need an environment of their own: the adapters of hosts (`farfield.hosts`), in two environments.

nox -s hosts            # all hosts
nox -s "hosts(mace)"    # those of one environment
nox -s "hosts(rest)"
"""  # noqa: D205

from __future__ import annotations

import re
from pathlib import Path

import nox

nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True

TORCH = "torch==2.13.0"
#: Hosts that one environment can hold together, and the versions that `farfield.hosts.registry` says are tested.
#: mace-torch pins an e3nn that is too old for the others.
HOSTS = {
    "mace": {"mace": "mace-torch==0.3.16"},
    "rest": {
        "nequip": "nequip==0.19.0",
        "allegro": "nequip-allegro==0.8.3",
        "chgnet": "chgnet==0.4.2",
        "matgl": "matgl==4.1.2",
    },
}
#: Pins that stand in the way of a host's own, each with why. With them pip goes back through years of versions.
UNPINNED = {
    "rest": {
        "urllib3": "matgl needs boto3, whose botocore allows no newer one than it knows",
        "python-dateutil": "likewise",
    }
}


@nox.session
@nox.parametrize("environment", list(HOSTS), ids=list(HOSTS))
def hosts(session: nox.Session, environment: str) -> None:
    """Check the laws of physics for the adapters of an environment's hosts."""
    names = list(HOSTS[environment])
    constraints = Path(session.create_tmp()) / "constraints.txt"
    constraints.write_text(_without(Path("constraints.txt").read_text(), UNPINNED.get(environment, {})))
    # torch alone and first: asked for by another package it would come as the newest CUDA build
    session.install("--quiet", TORCH)
    pins = ["--quiet", "-c", str(constraints)]
    session.install(*pins, "-e", f".[{','.join(names)}]", *HOSTS[environment].values())
    session.install(*pins, "pytest", "hypothesis", "beartype")
    installed = session.run("python", "-m", "pip", "list", "--format=freeze", silent=True) or ""
    cuda = [line for line in installed.splitlines() if line.lower().startswith("nvidia-")]
    # chgnet asks for this one, which holds no libraries: it reads the memory of cards by a driver that is there already
    cuda = [line for line in cuda if not line.startswith("nvidia-ml-py3==")]
    if cuda:
        session.error(f"CUDA libraries got in: {', '.join(cuda)}")
    env = {"OMP_NUM_THREADS": "1", "FARFIELD_HOST": environment}
    files = [str(path) for name in names for path in sorted(Path("tests/hosts").glob(f"test_{name}*.py"))]
    session.run("python", "-m", "pytest", *files, *session.posargs, env=env)


def _without(constraints: str, packages: dict[str, str]) -> str:
    """Leave out the pins of some packages."""
    lines = constraints.splitlines(keepends=True)
    return "".join(line for line in lines if re.split("[=<>~! ]", line)[0] not in packages)
