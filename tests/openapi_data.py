"""For schemathesis, which loads this as its hooks: data that the document alone does not tell how to make."""

import json

import schemathesis
from hypothesis import strategies as st

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
ACTIVITIES = st.fixed_dictionaries(
    {"billing_id": NAMES, "user_id": NAMES, "activity_type_id": NAMES}, optional={"id": NAMES}
)
METER_EVENTS = st.fixed_dictionaries(
    {"event_name": NAMES, "customer_id": NAMES, "value": st.integers(0, 10**30).map(str)},
    optional={"identifier": NAMES, "livemode": st.booleans(), "metadata": st.dictionaries(NAMES, NAMES)},
)
LINES = st.one_of(ACTIVITIES, METER_EVENTS).map(json.dumps)
NDJSON = st.lists(st.one_of(LINES, st.sampled_from(["", " ", "\r"])), max_size=5)

schemathesis.openapi.media_type(
    "application/x-ndjson",
    st.tuples(NDJSON, LINES, NDJSON).map(lambda parts: "\n".join([*parts[0], parts[1], *parts[2]]).encode()),
)
# Usage of the years before 1970 is told as what it is, an error; JSON Schema has no word for it.
schemathesis.openapi.format(
    "date-time", st.integers(1970, 5000).map(lambda year: f"{year}-07-01T12:00:00.250+02:00")
)
