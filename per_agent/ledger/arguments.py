"""What management calls are given, checked with all problems collected; and pages of lists."""

from typing import Any, Final

import msgspec

MAX_PAGE_SIZE: Final = 100


class Page(msgspec.Struct, frozen=True):
    """Page *number*, from 1, of *size* rows."""

    number: int
    size: int

    @property
    def offset(self) -> int:
        return (self.number - 1) * self.size

    def answer(self, count: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Payment Kit's list object: *rows* are this page's, *count* is that of all pages."""
        return {"count": count, "list": rows, "paging": {"page": self.number, "pageSize": self.size}}


def wanted_page(number: object, size: object, problems: list[str]) -> Page:
    """The page asked for; what is wrong with it is added to *problems*."""
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number < 2**31:
        problems.append(f"page: must be a whole number from 1, not {number!r}")
        number = 1
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= MAX_PAGE_SIZE:
        problems.append(f"pageSize: must be from 1 to {MAX_PAGE_SIZE}, not {size!r}")
        size = MAX_PAGE_SIZE
    return Page(number, size)


def check_text(field: str, given: object, problems: list[str], longest: int | None = None) -> None:
    """Add to *problems* what keeps *given* from being text of 1 to *longest* characters."""
    if not isinstance(given, str):
        problem = "is required" if given is None else f"must be a string, not {given!r}"
        problems.append(f"{field}: {problem}")
    elif not given.strip():
        problems.append(f"{field}: must not be empty")
    elif longest is not None and len(given) > longest:
        problems.append(f"{field}: is {len(given)} characters long, at most {longest} are allowed")
    elif any("\ud800" <= character <= "\udfff" for character in given):
        problems.append(f"{field}: holds half a surrogate pair, which has no UTF-8 form")


def check_mode(given: object, problems: list[str]) -> None:
    """Add to *problems* what keeps *given* from being a mode: true is live, false test, None both."""
    if given is not None and not isinstance(given, bool):
        problems.append(f"livemode: must be true or false, not {given!r}")
