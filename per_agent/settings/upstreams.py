"""The settings of the destinations: one frozen struct for each type of upstream."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import msgspec

from per_agent.settings.kinds import SidecarAddress, Url
from per_agent.settings.secret import Secret
from per_agent.settings.section import Section


class PerSettings(Section, frozen=True, kw_only=True, tag_field="type", tag="per"):
    """Per: counts unique active users.

    Attributes:
        activity_token: the token with the scope `activity`; events are sent with it.
        reporting_token: the token with the scope `reporting`; without it, `get_report` cannot ask.
        url: the base URL.
        timeout: seconds that one request may take.
        concurrency: the most requests that may be under way at once; fewer are where that is better. Per takes one
            event in each.
    """

    activity_token: Secret
    reporting_token: Secret | None = None
    url: Url = "https://api.useper.com"
    timeout: Annotated[float, msgspec.Meta(gt=0, le=600)] = 10.0
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=256)] = 64


class PaymentKitSettings(Section, frozen=True, kw_only=True, tag_field="type", tag="payment_kit"):
    """Payment Kit: sums metered usage against credits.

    Attributes:
        url: where Payment Kit is mounted, without `/api`.
        access_key: the access key.
        livemode: False for Payment Kit's test mode.
        timeout: seconds that one request may take.
        concurrency: the most requests that may be under way at once: Payment Kit takes one event in each.
    """

    url: Url
    access_key: Secret
    livemode: bool = True
    timeout: Annotated[float, msgspec.Meta(gt=0, le=600)] = 10.0
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=256)] = 4


class LedgerSettings(Section, frozen=True, kw_only=True, tag_field="type", tag="ledger"):
    """The embedded ledger.

    Attributes:
        path: its file; None means the agent's folder.
    """

    path: Path | None = None


class SidecarDestinationSettings(Section, frozen=True, kw_only=True, tag_field="type", tag="sidecar"):
    """A sidecar, which delivers what it is handed.

    Attributes:
        url: its Unix socket, such as `unix:/run/per-agent/agent.sock`, or `http://HOST:PORT`.
        token: its token, for TCP; on its socket nobody is asked for one.
        timeout: seconds that one request may take; the answer comes after the sidecar stored the events.
        concurrency: the most requests that may be under way at once: each carries a whole batch.
    """

    url: SidecarAddress = "unix:/run/per-agent/agent.sock"
    token: Secret | None = None
    timeout: Annotated[float, msgspec.Meta(gt=0, le=600)] = 10.0
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=256)] = 2


DestinationSettings = PerSettings | PaymentKitSettings | LedgerSettings | SidecarDestinationSettings

DESTINATIONS: Final[Mapping[str, type[DestinationSettings]]] = {
    "per": PerSettings,
    "payment_kit": PaymentKitSettings,
    "ledger": LedgerSettings,
    "sidecar": SidecarDestinationSettings,
}
