"""Few file descriptors, for a moment, as where a process has opened too many files."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def few_descriptors(free: int) -> Iterator[None]:
    """No more than *free* files can be opened, for as long as the block lasts."""
    opened = [
        os.open(os.devnull, os.O_RDONLY) for _ in range(free + 1)
    ]  # each the lowest number that is free
    for each in opened:
        os.close(each)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened[-1], limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
