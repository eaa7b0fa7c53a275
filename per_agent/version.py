"""The version of this package, as it was installed."""

from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed


@cache
def version() -> str:
    """Such as `0.1.0`; `0` where nothing is installed."""
    try:
        return installed("per-agent")
    except PackageNotFoundError:  # a checkout that is not installed
        return "0"
