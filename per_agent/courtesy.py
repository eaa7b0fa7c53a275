"""What the agent's threads owe the caller's: no long turn at the processor.

Decision. A thread of the caller's that becomes due while one of the agent's is at work on the same processor waits
until that one blocks: the kernel does not interrupt it within its slice of some milliseconds. So whoever has much
to do in one go calls `give_way` every few hundred microseconds, between two steps: it costs half a microsecond where
nobody waits, and takes most of the lateness from a caller's timer. Given up: on a processor that others keep busy,
each call is a turn for them. It is therefore made for each commit or request, and never for an event.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Final

give_way: Final[Callable[[], object]] = getattr(os, "sched_yield", partial(time.sleep, 0))
"""Let another thread that is ready have the processor and the interpreter's lock. Never waits without need."""
