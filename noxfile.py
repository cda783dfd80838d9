"""Tests that need an environment of their own: one for each host (`farfield.hosts`).

nox -s hosts            # all hosts
nox -s "hosts(mace)"    # one of them
"""  # noqa: D205

from __future__ import annotations

import nox

nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True

TORCH = "torch==2.13.0"
#: Hosts that one environment can hold together, and the versions that `farfield.hosts.registry` says are tested.
HOSTS = {
    "mace": ["mace-torch==0.3.16"],
    "nequip": ["nequip==0.19.0"],
    "allegro": ["nequip-allegro==0.8.3", "nequip==0.19.0"],
}
#: Tests of a host in files of other names.
MORE = {"allegro": ["tests/hosts/test_nequip_pair.py"]}


@nox.session
@nox.parametrize("host", list(HOSTS), ids=list(HOSTS))
def hosts(session: nox.Session, host: str) -> None:
    """Check the laws of physics for a host's adapter."""
    # torch alone and first: asked for by another package it would come as the newest CUDA build
    session.install("--quiet", TORCH)
    session.install("--quiet", "-c", "constraints.txt", "-e", f".[{host}]", *HOSTS[host])
    session.install("--quiet", "-c", "constraints.txt", "pytest", "hypothesis", "beartype")
    installed = session.run("python", "-m", "pip", "list", "--format=freeze", silent=True) or ""
    cuda = [line for line in installed.splitlines() if line.lower().startswith("nvidia-")]
    if cuda:
        session.error(f"CUDA libraries got in: {', '.join(cuda)}")
    env = {"OMP_NUM_THREADS": "1", "FARFIELD_HOST": host}
    session.run("python", "-m", "pytest", f"tests/hosts/test_{host}.py", *MORE.get(host, []), *session.posargs, env=env)
