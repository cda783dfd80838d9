"""``python -m farfield.compat.les COMMAND …``: run another program with this drop-in in the place of ``les``."""

from __future__ import annotations

import runpy
import sys
from importlib.metadata import entry_points
from pathlib import Path

from farfield.compat.les import install


def main(arguments: list[str]) -> None:
    """Run a command of an installed package, or a Python file, with the arguments that follow it."""
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.exit("usage: python -m farfield.compat.les COMMAND …, a command of an installed package or a Python file")
    command = arguments[0]
    install()
    sys.argv = list(arguments)
    points = list(entry_points(group="console_scripts", name=command))
    if points:
        sys.exit(points[0].load()())
    if not Path(command).is_file():
        sys.exit(f"error: no installed package has a command {command!r}, and it is no file")
    runpy.run_path(command, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
