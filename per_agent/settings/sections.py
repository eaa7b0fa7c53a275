"""The settings themselves: one frozen struct for each section, with its defaults and ranges.

A section checks itself when it is made, in whatever way it is made, and raises `ConfigError` with every
problem named. Seconds are floats, sizes are bytes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from per_agent.errors import ConfigError
from per_agent.settings.kinds import Size, Url, fit
from per_agent.settings.secret import Secret


class _Section(msgspec.Struct, frozen=True, kw_only=True):
    def __post_init__(self) -> None:
        problems: list[str] = []
        for field in msgspec.structs.fields(type(self)):
            try:
                fitting = fit(getattr(self, field.name), field.type)
            except ConfigError as error:
                problems += (f"{field.name}: {problem}" for problem in error.problems)
            else:
                msgspec.structs.force_setattr(self, field.name, fitting)
        if problems:
            raise ConfigError(problems)


class AgentSettings(_Section, frozen=True, kw_only=True):
    """The agent as a whole.

    Attributes:
        data_dir: the folder of the spools and of the ledger. `load` puts the default in the place of None.
        exit_timeout: seconds that a program which simply ends may spend delivering.
    """

    data_dir: Path | None = None
    exit_timeout: Annotated[float, msgspec.Meta(ge=0, le=600)] = 2.0


class IntakeSettings(_Section, frozen=True, kw_only=True):
    """The way from the caller's thread to the spool.

    Attributes:
        buffer_events: events that may wait in memory for the disk; this bounds the memory.
        linger: seconds that an event may wait for company before its block is stored.
        block_events: events that make a block full, so that it is stored at once.
        overflow: what `add_*` does when the buffer is full: raise `BufferFull`, wait, or drop the new event
            and count it as dropped.
    """

    buffer_events: Annotated[int, msgspec.Meta(ge=1, le=100_000_000)] = 100_000
    linger: Annotated[float, msgspec.Meta(ge=0, le=60)] = 0.05
    block_events: Annotated[int, msgspec.Meta(ge=1, le=65_535)] = 500  # what a block can count
    overflow: Literal["raise", "block", "drop_newest"] = "raise"


class SpoolSettings(_Section, frozen=True, kw_only=True):
    """The queue on disk.

    Attributes:
        max_bytes: the most that the spool may hold.
        adopt_interval: seconds between two looks for spools that a dead process left behind.
    """

    max_bytes: Size = 10 * 2**30
    adopt_interval: Annotated[float, msgspec.Meta(gt=0, le=60)] = 30.0


# What an upstream asks for is clamped to this in `backoff.retry_after` already, so a larger setting would
# be a promise that is not kept.
_RETRY_AFTER_CEILING: Final = 300


class DeliverySettings(_Section, frozen=True, kw_only=True):
    """The way from the spool to the destinations.

    Attributes:
        backoff_initial: the longest wait after a first failure, in seconds; it doubles with each further one.
        backoff_max: the longest wait after however many failures, in seconds.
        retry_after_max: the longest wait that an upstream may ask for, in seconds.
        probe_interval: seconds between two looks whether parked events may go on.
        refusal_attempts: tries for an event whose refusal is not certain.
        window_blocks: blocks read ahead for each destination; this bounds the memory of a backlog.
    """

    backoff_initial: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 0.5
    backoff_max: Annotated[float, msgspec.Meta(gt=0, le=86_400)] = 60.0
    retry_after_max: Annotated[float, msgspec.Meta(ge=0, le=_RETRY_AFTER_CEILING)] = 300.0
    probe_interval: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 5.0
    refusal_attempts: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 5
    window_blocks: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 8


class PerSettings(_Section, frozen=True, kw_only=True, tag_field="type", tag="per"):
    """Per: counts unique active users.

    Attributes:
        activity_token: the token with the scope `activity`; events are sent with it.
        reporting_token: the token with the scope `reporting`; without it, `get_report` cannot ask.
        url: the base URL.
        timeout: seconds that one request may take.
        concurrency: requests that may be under way at once: Per takes one event in each.
    """

    activity_token: Secret
    reporting_token: Secret | None = None
    url: Url = "https://api.useper.com"
    timeout: Annotated[float, msgspec.Meta(gt=0, le=600)] = 10.0
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=256)] = 8


class PaymentKitSettings(_Section, frozen=True, kw_only=True, tag_field="type", tag="payment_kit"):
    """Payment Kit: sums metered usage against credits.

    Attributes:
        url: where Payment Kit is mounted, without `/api`.
        access_key: the access key.
        livemode: False for Payment Kit's test mode.
        timeout: seconds that one request may take.
        concurrency: requests that may be under way at once: Payment Kit takes one event in each.
    """

    url: Url
    access_key: Secret
    livemode: bool = True
    timeout: Annotated[float, msgspec.Meta(gt=0, le=600)] = 10.0
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=256)] = 4


class LedgerSettings(_Section, frozen=True, kw_only=True, tag_field="type", tag="ledger"):
    """The embedded ledger.

    Attributes:
        path: its file; None means the agent's folder.
    """

    path: Path | None = None


DestinationSettings = PerSettings | PaymentKitSettings | LedgerSettings


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings.

    Attributes:
        destinations: by name, which is also the name of the lane in the spool; never empty after `load`.
        warnings: one sentence for each thing that works and should not be so.
    """

    agent: AgentSettings = AgentSettings()
    intake: IntakeSettings = IntakeSettings()
    spool: SpoolSettings = SpoolSettings()
    delivery: DeliverySettings = DeliverySettings()
    destinations: Mapping[str, DestinationSettings] = msgspec.field(
        default_factory=lambda: {"ledger": LedgerSettings()}
    )
    warnings: tuple[str, ...] = ()


SECTIONS: Final[Mapping[str, type[_Section]]] = {
    "agent": AgentSettings,
    "intake": IntakeSettings,
    "spool": SpoolSettings,
    "delivery": DeliverySettings,
}
DESTINATIONS: Final[Mapping[str, type[DestinationSettings]]] = {
    "per": PerSettings,
    "payment_kit": PaymentKitSettings,
    "ledger": LedgerSettings,
}
