"""Function that returns the worker processes of this process."""

from __future__ import annotations

import psutil


def worker_children() -> list[psutil.Process]:
    """Return the child processes that are workers of `vision`, including zombie processes.

    Other children, such as the resource tracker of `multiprocessing`, can belong to previous tests.
    """
    return [child for child in psutil.Process().children() if _is_worker(child)]


def _is_worker(child: psutil.Process) -> bool:
    try:
        return "VISION_WORKER" in " ".join(child.cmdline())
    except psutil.ZombieProcess:
        return True
    except psutil.NoSuchProcess:
        return False
