"""In the child of `guest`: what an import costs, in an interpreter that has imported nothing for the measuring."""

import importlib
import sys
import time


def imported(*, module: str) -> dict[str, float]:
    """The time that *module* takes, the memory and the modules that it brings."""
    before, modules = _resident(), len(sys.modules)
    began, processor = time.perf_counter(), time.process_time()
    importlib.import_module(module)
    took, processor = time.perf_counter() - began, time.process_time() - processor
    return {
        "took": took * 1000,
        "processor": processor * 1000,
        "memory": _resident() - before,
        "modules": len(sys.modules) - modules,
    }


def _resident() -> float:
    with open("/proc/self/statm") as statm:  # noqa: PTH123  (pathlib may be what is measured)
        return int(statm.read().split()[1]) * 4096 / 1e6
