"""The account at the end of a test: each event is in the ledger once, the books say so, and nothing is left of the dead."""

from collections.abc import Collection
from pathlib import Path

from test_journal_kills import in_the_ledger
from waiting import until

from per_agent import Agent, Books, DeliverySettings, Ledger, SpoolSettings


def delivered_once(data_dir: Path, returned: Collection[str], perhaps: Collection[str] = ()) -> None:
    """Deliver what is left under *data_dir*, and see that these users of activities are counted, each once.

    Those in *perhaps* may be: their `add_activity` had not returned when the process died.
    """
    ledger = Ledger()
    with Agent(
        data_dir,
        [ledger],
        delivery=DeliverySettings(backoff_initial=0.1, backoff_max=0.5),
        spool=SpoolSettings(adopt_interval=0.1),
    ) as agent:
        # Spools and journals that dead processes left are found by looking from time to time.
        def all_is_there() -> Books | None:
            agent.flush(10)
            books = agent.books()["ledger"]
            return books if books.accepted >= len(set(returned)) and not books.pending else None

        books = until(all_is_there, 60, every=0.1)
        activities, _ = ledger.totals()
        # Books of spools that are drained are carried over, and their folders removed.
        until(lambda: len(list((data_dir / "spools").iterdir())) == 1, 60)
    users, _ = in_the_ledger(data_dir)
    assert sorted(set(returned) - users) == [], "what was accepted is delivered"
    assert sorted(users - set(returned) - set(perhaps)) == [], "and nothing that was not"
    assert activities == len(users), "each was counted once"
    assert books.balanced
    assert (books.pending, books.dead, books.dropped) == (0, 0, 0)
    assert books.accepted == books.delivered == activities, "and entered in the books once"
    assert not list(data_dir.rglob("*.journal")), "nothing is left of the dead"
