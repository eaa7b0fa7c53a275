"""The command `per-agent`: one module for each group of commands.

==============  ==========================================================================
`app`           the commands put together; `main`
`call`          what every command is given: options that stand anywhere, settings, agents
`exits`         the exit codes, and which error means which
`console`       what is printed: tables, JSON, one-line messages
`times`         spans and moments, as people write and read them
`overview`      what lies in the data folder, destination by destination
`add`           `add activity`, `add meter`, `add FILE`; `records` and `tally` are its parts
`report`        `report`
`meters`        `meters …`
`status`        `status`, `books`
`dead`          `dead …`; `letters` chooses letters and sends them again
`config`        `config …`
`demo`          `demo`
==============  ==========================================================================
"""

from per_agent.cli.app import main

__all__ = ["main"]
