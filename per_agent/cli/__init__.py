"""The command `per-agent`: one module for each group of commands.

==============  ==========================================================================
`app`           the commands put together; `main`
`call`          what every command is given: options that stand anywhere, settings, agents
`exits`         the exit codes, and which error means which
`console`       what is printed: tables, JSON, one-line messages
`times`         spans and moments, as people write and read them
`sidecar`       the running sidecar, and what it is asked; `finding` tells which one
`source`        where a command looks: the sidecar, else the folder itself
`run`           `run`
`add`           `add activity`, `add meter`, `add FILE`; `records` are read, and taken by the sidecar
                (`handover`, `following`) or by the spool (`straight`, `tally`)
`report`        `report`
`meters`        `meters …`
`status`        `status`, `books`
`dead`          `dead …`; `letters` sends letters again
`config`        `config …`
`demo`          `demo`
==============  ==========================================================================
"""

from per_agent.cli.app import main

__all__ = ["main"]
