"""The settings: TOML, environment and systemd credentials become frozen `Settings`, or one `ConfigError`.

=============  ====================================================================
`secret`       a token that is never shown
`address`      URLs, sockets and what to listen on, taken apart
`kinds`        the kinds of value, and whether a value is of its kind, in words
`section`      a struct that checks itself
`sections`     the structs, with defaults and ranges; the destinations' are in `upstreams`,
               the sidecar's in `sidecar`
`reader`       tables of a file into structs, all problems collected
`environment`  what the environment says by itself
`places`       where the sidecar's socket and token lie
`load`         puts them together; `show` and `example` for the command line
=============  ====================================================================
"""

from per_agent.settings.environment import default_data_dir
from per_agent.settings.load import example, load, secrets_of, show
from per_agent.settings.places import socket_path, token_path
from per_agent.settings.reader import LANE
from per_agent.settings.secret import Secret
from per_agent.settings.sections import (
    AgentSettings,
    DeliverySettings,
    IntakeSettings,
    Settings,
    SpoolSettings,
)
from per_agent.settings.sidecar import SidecarSettings
from per_agent.settings.upstreams import (
    DestinationSettings,
    LedgerSettings,
    PaymentKitSettings,
    PerSettings,
    SidecarDestinationSettings,
)

__all__ = [
    "LANE",
    "AgentSettings",
    "DeliverySettings",
    "DestinationSettings",
    "IntakeSettings",
    "LedgerSettings",
    "PaymentKitSettings",
    "PerSettings",
    "Secret",
    "Settings",
    "SidecarDestinationSettings",
    "SidecarSettings",
    "SpoolSettings",
    "default_data_dir",
    "example",
    "load",
    "secrets_of",
    "show",
    "socket_path",
    "token_path",
]
