"""One measurement in a process of its own: `python -m benchmarks.child MODULE:FUNCTION ARGUMENTS`, both ways in JSON.

Imports next to nothing, so that what is measured is there alone. What the function returns is printed together
with the moment of the end of the program proper, from which the parent tells how long the way out took.
"""

import importlib
import json
import sys
import time


def main() -> None:
    module, _, function = sys.argv[1].partition(":")
    measured = getattr(importlib.import_module(f"benchmarks.{module}"), function)
    try:
        found = measured(**json.loads(sys.argv[2]))
    except ImportError as error:
        # What the project itself needs is there: this process could not have been started otherwise.
        found = {"not_installed": error.name or str(error)}
    sys.stdout.write("\n" + json.dumps(found | {"ended_at": time.monotonic()}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
