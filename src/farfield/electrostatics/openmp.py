"""Run tasks on the threads that torch itself uses on the CPU.

After each of its loops torch's OpenMP threads wait for the next one at full load, for milliseconds. Threads of our own
would share the processors with them: on two cores two tasks then take as long as one after the other. So tasks go to
that same team, by the function that compilers call for ``#pragma omp parallel``.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

#: Runtimes that have ``GOMP_parallel``: GNU's, which torch brings along on Linux, Intel's and LLVM's.
_RUNTIME = re.compile(r"(/\S*/lib(?:gomp|iomp5|omp)[^/\s]*\.so[^/\s]*)$")

_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

#: Forked processes inherit the runtime, but none of its threads, for which it would wait.
_forked = False


def _in_forked_process() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_process)


@functools.cache
def _runtime() -> ctypes.CDLL | None:
    """Return torch's OpenMP runtime: the one in its folder, else the only one of the process, else None."""
    try:
        mapped = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    found = {match[1] for line in mapped.splitlines() if (match := _RUNTIME.search(line))}
    found = {path for path in found if "/torch/" in path or "/torch.libs/" in path} or found
    if len(found) != 1:
        return None
    try:
        runtime = ctypes.CDLL(found.pop())
        runtime.GOMP_parallel.argtypes = (_Body, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        runtime.GOMP_parallel.restype = None
        runtime.omp_get_thread_num.restype = ctypes.c_int
        runtime.omp_get_num_threads.restype = ctypes.c_int
    except (OSError, AttributeError):
        return None
    return runtime


def run_in_team(tasks: Sequence[Callable[[], Any]], threads: int) -> bool:
    """Run tasks on torch's threads and wait for all; False, with nothing done, where that is not possible.

    Tasks should release the interpreter's lock. What the first of them to fail raised is raised here.
    """
    runtime = None if _forked else _runtime()
    if runtime is None:
        return False
    errors: list[BaseException] = []

    def body(_: object) -> None:
        # The team may be smaller than it was asked to be.
        for task in tasks[runtime.omp_get_thread_num() :: runtime.omp_get_num_threads()]:
            try:
                task()
            except BaseException as error:  # noqa: BLE001 (an exception has no way through the runtime)
                errors.append(error)

    runtime.GOMP_parallel(_Body(body), None, min(threads, len(tasks)), 0)
    if errors:
        raise errors[0]
    return True
