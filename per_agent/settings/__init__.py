"""The settings: TOML, environment and systemd credentials become frozen `Settings`, or one `ConfigError`.

=============  ====================================================================
`secret`       a token that is never shown
`kinds`        the kinds of value, and whether a value is of its kind, in words
`sections`     the structs, with defaults and ranges
`reader`       tables of a file into structs, all problems collected
`environment`  what the environment says by itself
`load`         puts them together; `show` and `example` for the command line
=============  ====================================================================
"""

from per_agent.settings.environment import default_data_dir
from per_agent.settings.load import example, load, show
from per_agent.settings.secret import Secret
from per_agent.settings.sections import (
    AgentSettings,
    DeliverySettings,
    DestinationSettings,
    IntakeSettings,
    LedgerSettings,
    PaymentKitSettings,
    PerSettings,
    Settings,
    SpoolSettings,
)

__all__ = [
    "AgentSettings",
    "DeliverySettings",
    "DestinationSettings",
    "IntakeSettings",
    "LedgerSettings",
    "PaymentKitSettings",
    "PerSettings",
    "Secret",
    "Settings",
    "SpoolSettings",
    "default_data_dir",
    "example",
    "load",
    "show",
]
