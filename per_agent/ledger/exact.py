"""Exact amounts: added without rounding, kept as a 64-bit integer where one holds them, else as text."""

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Context, Decimal, DivisionByZero, Inexact, InvalidOperation, Overflow, localcontext
from typing import Final

# A value has at most 128 characters (`per_agent.event`), so a sum of 2**63 of them has at most 147 digits
# before the point and 127 after it. Inexact is trapped: a rounded sum would raise, never be stored.
_EXACT: Final = Context(prec=300, traps=[Inexact, InvalidOperation, DivisionByZero, Overflow])
_INTEGERS: Final = range(-(2**63), 2**63)

Amount = int | Decimal
Kept = int | str


@contextmanager
def exactly() -> Iterator[None]:
    """Within it `+` on amounts is exact."""
    with localcontext(_EXACT):
        yield


def amount(value: Kept) -> Amount:
    """The amount that *value* holds: as it was kept, or a plain decimal as an event carries it."""
    if isinstance(value, int):
        return value
    return Decimal(value) if "." in value else int(value)


def kept(total: Amount) -> Kept:
    """*total* in the form that it is stored in."""
    if isinstance(total, int):
        return total if total in _INTEGERS else str(total)
    return format(total, "f")


def plain(total: Amount) -> str:
    """*total* in plain notation, without zeros at the end of its fraction."""
    return str(total) if isinstance(total, int) else format(_EXACT.add(total.normalize(_EXACT), 0), "f")


def add_kept(one: Kept, other: Kept) -> Kept:
    """The sum of two kept amounts, kept. SQLite calls it as `add_exact`."""
    first, second = amount(one), amount(other)
    if isinstance(first, int) and isinstance(second, int):
        return kept(first + second)
    return kept(_EXACT.add(Decimal(first), Decimal(second)))
