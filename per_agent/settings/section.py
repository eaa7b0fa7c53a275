"""`Section`: a struct of settings that checks itself when it is made, in whatever way it is made."""

import msgspec

from per_agent.errors import ConfigError
from per_agent.settings.kinds import fit


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """One section of the settings. Raises `ConfigError` with every problem named, each by its field."""

    def __post_init__(self) -> None:
        problems: list[str] = []
        for field in msgspec.structs.fields(type(self)):
            try:
                fitting = fit(getattr(self, field.name), field.type)
            except ConfigError as error:
                problems += (f"{field.name}: {problem}" for problem in error.problems)
            else:
                msgspec.structs.force_setattr(self, field.name, fitting)
        if not problems:
            problems += self.clashes()
        if problems:
            raise ConfigError(problems)

    def clashes(self) -> list[str]:
        """What is wrong with fields that are each well by themselves: `"FIELD: problem"`."""
        return []
