"""The embedded ledger: counts unique users and sums metered usage in one SQLite file, without any account.

`Activities` answers as Per does, `Meters` and `MeterEvents` as Payment Kit does. Events come in through
`insert_activities` and `insert_meter_events`, within one `Database.write`, each once by its identifier.
"""

from per_agent.ledger.activities import Activities, milliseconds
from per_agent.ledger.activities import insert as insert_activities
from per_agent.ledger.connection import Connection
from per_agent.ledger.counting import insert as insert_meter_events
from per_agent.ledger.database import Database
from per_agent.ledger.evidence import counted, totals
from per_agent.ledger.meter_events import MeterEvents
from per_agent.ledger.meters import Meters

__all__ = [
    "Activities",
    "Connection",
    "Database",
    "MeterEvents",
    "Meters",
    "counted",
    "insert_activities",
    "insert_meter_events",
    "milliseconds",
    "totals",
]
