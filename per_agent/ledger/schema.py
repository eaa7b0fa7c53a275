"""The ledger's tables, and how to tell its file from any other SQLite file.

What is stored, and why it is stored so:

- An `audience` is one (activity type, billing ID) pair; its members are numbered 0, 1, 2 … as they first
  appeared. `activity` keeps who was active in which millisecond. `active_day` keeps, for each UTC day and
  audience, a bitmap of the members seen on it, in blocks of `BLOCK` members. A report ORs the bitmaps of the
  whole days in its window and reads `activity` only for the two cut-off days at its ends, so it costs
  days x audiences and not activities. (Rows of (day, member) instead would be hundreds of times as many
  to read, and in a busy day hundreds of pages to write for each batch.)
- `activity` is a set: two activities of one member in one millisecond are one row, since only unique members
  are ever asked for. That each identifier counts once is for `activity_identifier` to see to.
- `meter_event` keeps every event as it came. `meter_minute` sums it by meter and minute, `customer_day` by
  meter, UTC day and account, an account being one (customer, subscription) pair. The sums are exact: an
  SQLite integer where it fits in 64 bits, plain decimal text otherwise, added by `exact.add_kept` and never
  by SQLite, whose `+` and `sum()` turn to floating point on overflow.
- There is no index of events by customer: its inserts would write one page for each event, forty times the
  bytes of the event. `by_time` holds the account too, so that a customer's events are found in it alone.

A column without a type keeps what it is given: `identifier` a blob or a text, `total` an integer or a text.
(`STRICT` tables would say so better; they are newer than the SQLite of some supported systems.)

Times of activities and of records are milliseconds since 1970, timestamps of meter events seconds, both UTC.
"""

from typing import Final

APPLICATION_ID: Final = 0x50657241  # "PerA": in bytes 68 to 71 of the file
VERSION: Final = 1
BLOCK: Final = 1024  # members in one bitmap: 128 bytes when full, and trailing zeros are not stored

TABLES: Final = """
CREATE TABLE audience (
    id INTEGER PRIMARY KEY,
    activity_type TEXT NOT NULL,
    billing_id TEXT NOT NULL,
    members INTEGER NOT NULL DEFAULT 0,
    UNIQUE (activity_type, billing_id)
);
CREATE TABLE member (
    audience INTEGER NOT NULL,
    user_id TEXT NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (audience, user_id)
) WITHOUT ROWID;
CREATE TABLE activity_identifier (
    identifier PRIMARY KEY
) WITHOUT ROWID;
CREATE TABLE activity (
    at INTEGER NOT NULL,
    audience INTEGER NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (at, audience, number)
) WITHOUT ROWID;
CREATE TABLE active_day (
    day INTEGER NOT NULL,
    audience INTEGER NOT NULL,
    block INTEGER NOT NULL,
    bits BLOB NOT NULL,
    PRIMARY KEY (day, audience, block)
) WITHOUT ROWID;

CREATE TABLE currency (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    symbol TEXT NOT NULL,
    decimal INTEGER NOT NULL
);
CREATE TABLE meter (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    event_name TEXT NOT NULL,
    aggregation_method TEXT NOT NULL,
    unit TEXT NOT NULL,
    currency_id TEXT NOT NULL REFERENCES currency (id),
    status TEXT NOT NULL,
    livemode INTEGER NOT NULL,
    description TEXT,
    metadata TEXT NOT NULL,
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL,
    UNIQUE (livemode, event_name)
);
CREATE TABLE account (
    id INTEGER PRIMARY KEY,
    customer_id TEXT NOT NULL,
    subscription_id TEXT NOT NULL,
    UNIQUE (customer_id, subscription_id)
);
CREATE TABLE meter_event (
    number INTEGER PRIMARY KEY,
    identifier NOT NULL UNIQUE,
    meter INTEGER NOT NULL,
    account INTEGER NOT NULL,
    value TEXT NOT NULL,
    timestamp INTEGER NOT NULL,
    created INTEGER NOT NULL,
    metadata TEXT,
    source_data TEXT
);
CREATE INDEX by_time ON meter_event (meter, timestamp, account);
CREATE TABLE meter_minute (
    meter INTEGER NOT NULL,
    minute INTEGER NOT NULL,
    events INTEGER NOT NULL,
    total NOT NULL,
    PRIMARY KEY (meter, minute)
) WITHOUT ROWID;
CREATE TABLE customer_day (
    meter INTEGER NOT NULL,
    day INTEGER NOT NULL,
    account INTEGER NOT NULL,
    events INTEGER NOT NULL,
    total NOT NULL,
    PRIMARY KEY (meter, day, account)
) WITHOUT ROWID;
"""
