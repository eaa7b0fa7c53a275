"""The soak's programs: the soak itself, and by name those that it starts: `oracle`, `producer`, `judge`."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

if __name__ == "__main__":
    match sys.argv[1:]:
        case ["oracle", *arguments]:
            from soak import oracle

            oracle.main(arguments)
        case ["producer", task]:
            from soak import producer

            producer.main(task)
        case ["judge", folder]:
            from soak import command

            sys.exit(command.judge_again(Path(folder)))
        case arguments:
            from soak import command

            sys.exit(command.main(arguments))
