"""What the kernels that numba compiles share: how they are compiled, and the threads they run on.

Kernels are compiled when first used and kept on disk for later processes. They run without the interpreter's lock on
the threads of torch (`farfield.electrostatics.openmp`) or, where these cannot be had, on threads of our own: numba's
own threading layers do not survive forked data-loader workers or two Python threads.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from farfield.electrostatics.openmp import run_in_team


@functools.cache
def kernels_for(device: str) -> str | None:
    """Name the kernels that can be compiled here for a kind of device: newest Pythons wait for numba for months."""
    name = {"cpu": "numba", "cuda": "triton"}.get(device)
    return name if name is not None and importlib.util.find_spec(name) is not None else None


def compiled(function: Callable[..., Any], *, inlined: bool = False) -> Any:
    """Compile a function by numba, without the run-time checks of shapes that tests wrap around everything.

    Sums may be taken in any order, and what is divided by zero is no error: only so loops become vector instructions.
    What is called inside such a loop has to be ``inlined``.
    """
    import numba

    options: dict[str, Any] = {"nogil": True, "fastmath": True, "error_model": "numpy", "forceinline": inlined}
    plain = inspect.unwrap(function)
    try:
        return numba.njit(cache=True, **options)(plain)
    except RuntimeError:  # nowhere to keep them: neither the package nor the home directory can be written to
        return numba.njit(**options)(plain)


class Pool:
    """Threads for the compiled kernels, made anew in a forked process, where those of the parent do not exist."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None
        self._size = 0
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._threads, self._size = None, 0

    def run(self, tasks: Iterable[Callable[[], Any]]) -> None:
        """Run tasks, at once as far as torch may use threads, and wait for all."""
        tasks = list(tasks)
        size = torch.get_num_threads()
        if size == 1 or len(tasks) == 1:
            for task in tasks:
                task()
            return
        if run_in_team(tasks, size):
            return
        if self._threads is None or self._size < size:
            self._threads, self._size = ThreadPoolExecutor(size, thread_name_prefix="farfield"), size
        # This thread has nothing else to do: it takes the last task itself.
        futures: list[Future[Any]] = [self._threads.submit(task) for task in tasks[:-1]]
        for task in tasks[-1:]:
            task()
        for future in futures:
            future.result()


POOL = Pool()
