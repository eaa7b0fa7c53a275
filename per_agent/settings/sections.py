"""The settings themselves: one frozen struct for each section, with its defaults and ranges.

Seconds are floats, sizes are bytes. The destinations' are in `upstreams`, the sidecar's in `sidecar`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from per_agent.settings.kinds import Size
from per_agent.settings.section import Section
from per_agent.settings.sidecar import SidecarSettings
from per_agent.settings.upstreams import DestinationSettings, LedgerSettings


class AgentSettings(Section, frozen=True, kw_only=True):
    """The agent as a whole.

    Attributes:
        data_dir: the folder of the spools and of the ledger. `load` puts the default in the place of None.
        exit_timeout: seconds that a program which simply ends may spend delivering.
    """

    data_dir: Path | None = None
    exit_timeout: Annotated[float, msgspec.Meta(ge=0, le=600)] = 2.0


class IntakeSettings(Section, frozen=True, kw_only=True):
    """The way from the caller's thread to the spool.

    Attributes:
        buffer_events: events that may wait in memory for the disk; this bounds the memory.
        linger: seconds that an event may wait for company before its block is stored.
        block_events: events that make a block full, so that it is stored at once.
        overflow: what `add_*` does when the buffer is full: raise `BufferFull`, wait, or drop the new event
            and count it as dropped.
        journal: whether an event is also kept in a mapped file until it is stored, so that it outlives the
            process from the moment that it is accepted.
    """

    buffer_events: Annotated[int, msgspec.Meta(ge=1, le=100_000_000)] = 100_000
    linger: Annotated[float, msgspec.Meta(ge=0, le=60)] = 0.05
    block_events: Annotated[int, msgspec.Meta(ge=1, le=65_535)] = 500  # what a block can count
    overflow: Literal["raise", "block", "drop_newest"] = "raise"
    journal: bool = True


class SpoolSettings(Section, frozen=True, kw_only=True):
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


class DeliverySettings(Section, frozen=True, kw_only=True):
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
    sidecar: SidecarSettings = SidecarSettings()
    destinations: Mapping[str, DestinationSettings] = msgspec.field(
        default_factory=lambda: {"ledger": LedgerSettings()}
    )
    warnings: tuple[str, ...] = ()


SECTIONS: Final[Mapping[str, type[Section]]] = {
    "agent": AgentSettings,
    "intake": IntakeSettings,
    "spool": SpoolSettings,
    "delivery": DeliverySettings,
    "sidecar": SidecarSettings,
}
