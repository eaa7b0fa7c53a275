"""What the environment says by itself: where the data lies, and the destinations where there is no file."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

from per_agent.errors import ConfigError
from per_agent.settings.address import in_the_clear, split_url
from per_agent.settings.kinds import found
from per_agent.settings.secret import Secret
from per_agent.settings.upstreams import DestinationSettings, LedgerSettings, PaymentKitSettings, PerSettings

DESTINATION_VARIABLES: Final = (
    "PER_ACTIVITY_TOKEN",
    "PER_REPORTING_TOKEN",
    "PAYMENT_KIT_URL",
    "PAYMENT_KIT_ACCESS_KEY",
    "PAYMENT_KIT_LIVEMODE",
)
_SWITCH: Final = {
    "true": True, "yes": True, "on": True, "1": True,
    "false": False, "no": False, "off": False, "0": False,
}  # fmt: skip
_T = TypeVar("_T")


def variable(environ: Mapping[str, str], name: str) -> str | None:
    """The value of the variable *name*, or None where it is not set.

    Raises `ConfigError` where it is empty. An empty token is a deployment whose secret did not arrive; to
    take it for "not set" would send billable events to the ledger without a word.
    """
    value = environ.get(name)
    if value == "":
        raise ConfigError(f"{name}: is set but empty; give it a value or unset it")
    return value


def default_data_dir(environ: Mapping[str, str]) -> Path:
    """The folder for the agent's data where neither an argument nor a file names one; absolute.

    In this order: `PER_AGENT_DATA_DIR` (relative to the working folder), the first folder of
    `STATE_DIRECTORY` (which systemd sets for a unit with `StateDirectory=`), `XDG_STATE_HOME/per-agent`,
    `HOME/.local/state/per-agent`. Raises `ConfigError` where none is set.
    """
    named = variable(environ, "PER_AGENT_DATA_DIR") or environ.get("STATE_DIRECTORY", "").split(":")[0]
    if named:
        return Path(named).absolute()
    state = environ.get("XDG_STATE_HOME", "")
    if state.startswith("/"):  # the XDG specification wants a relative one ignored
        return Path(state, "per-agent")
    home = environ.get("HOME", "")
    if home.startswith("/"):
        return Path(home, ".local/state/per-agent")
    raise ConfigError(
        "agent.data_dir: is not set, nor is PER_AGENT_DATA_DIR, STATE_DIRECTORY, XDG_STATE_HOME or HOME"
    )


def destinations_from(
    environ: Mapping[str, str], problems: list[str], warnings: list[str]
) -> dict[str, DestinationSettings]:
    """The destinations that the variables describe: `per`, `payment_kit`; the ledger where none is set.

    Nothing raises: *problems* and *warnings* are added to, each by its variable. A destination that is half
    described is a problem, and never a reason to fall back to the ledger.
    """

    def take(name: str, make: Callable[[str], _T]) -> _T | None:
        try:
            value = variable(environ, name)
        except ConfigError as error:
            problems.extend(error.problems)
            return None
        try:
            return None if value is None else make(value)
        except ConfigError as error:
            problems.extend(f"{name}: {problem}" for problem in error.problems)
            return None

    activity_token = take("PER_ACTIVITY_TOKEN", Secret)
    reporting_token = take("PER_REPORTING_TOKEN", Secret)
    url = take("PAYMENT_KIT_URL", _url)
    access_key = take("PAYMENT_KIT_ACCESS_KEY", Secret)
    livemode = take("PAYMENT_KIT_LIVEMODE", _switch)
    problems.extend(_missing(environ))

    destinations: dict[str, DestinationSettings] = {}
    if activity_token is not None:
        destinations["per"] = PerSettings(activity_token=activity_token, reporting_token=reporting_token)
    if url is not None and access_key is not None:
        if in_the_clear(url):
            warnings.append("PAYMENT_KIT_URL: http:// sends the access key in the clear; use https://")
        destinations["payment_kit"] = PaymentKitSettings(
            url=url, access_key=access_key, livemode=True if livemode is None else livemode
        )
    return destinations or {"ledger": LedgerSettings()}


def _missing(environ: Mapping[str, str]) -> list[str]:
    """What is not set and must be, for what is set."""
    problems = []
    if "PER_REPORTING_TOKEN" in environ and "PER_ACTIVITY_TOKEN" not in environ:
        problems.append(
            "PER_ACTIVITY_TOKEN: is not set, and PER_REPORTING_TOKEN is; a Per destination sends with the"
            " activity token, the other only reads reports"
        )
    given = [name for name in DESTINATION_VARIABLES if name.startswith("PAYMENT_KIT_") and name in environ]
    problems += (
        f"{name}: is not set, and {given[0]} is; a Payment Kit destination needs an address and an access key"
        for name in ("PAYMENT_KIT_URL", "PAYMENT_KIT_ACCESS_KEY")
        if given and name not in given
    )
    return problems


def _url(text: str) -> str:
    split_url(text)
    return text


def _switch(text: str) -> bool:
    try:
        return _SWITCH[text.lower()]
    except KeyError:
        raise ConfigError(f"expected true or false, found {found(text)}") from None
