"""What Payment Kit's words mean, which are documented nowhere.

Context: its reference names the rules (an identifier used before is rejected, an inactive meter takes no
events) and neither the statuses nor the wordings. Choice: match broadly on the words, with the event's own
texts taken out first, since a meter may well be called "customer.created"; what is not recognised stays
`UNKNOWN` and is confirmed by asking for the stored events. Given up: certainty. So a mistake must be mild: an
event wrongly parked goes on, and one wrongly refused is kept as a dead letter. Only `DUPLICATE` removes an
event, and so it alone demands that the identifier itself is named: a bare 409 is none, and the stored events tell.
"""

import re
from collections.abc import Iterable
from enum import Enum, auto
from typing import Final

from per_agent.destinations.http import Answer


class Meaning(Enum):
    """What a 4xx answer to a meter event is about."""

    CREDENTIALS = auto()
    DUPLICATE = auto()
    METER = auto()
    CUSTOMER = auto()
    FIELD = auto()
    UNKNOWN = auto()


_TROUBLE: Final = re.compile(
    r"\b(?:not (?:be )?found|no such|inactive|unknown|missing|unavailable|disabled|deactivated|archived"
    r"|cancell?ed|expired|ended|insufficient|not enough)\b"
    r"|(?:\bnot|n't)\s(?:\w+\s)?(?:exist|active|available|find|belong)|\bcannot find\b"
)
_NOT_THERE: Final = re.compile(r"(?:\bnot|n't)\s(?!already\b)(?:\w+\s)?exist|\bno\b[^.,;:]*\bexist")
_TAKEN: Final = re.compile(r"exist|duplicate|already|unique")
_METER: Final = re.compile(r"\bmeters?\b|\bevent[_ ]?name\b")
_CUSTOMER: Final = re.compile(r"\b(?:customer|subscription)(?:_?id)?\b|\bcredits?\b")
_JOI: Final = re.compile(r"\"[\w.\[\]]+\" (?:must|is|length|with|contains|does|fails)\b")
_INVALID: Final = re.compile(r"\binvalid\b")
_FIELD: Final = re.compile(r"\b(?:is required|must be|must not|not allowed|too long|validation|invalid)\b")

# Words by which answers are told apart. A meter of such a name stays in the text.
_VOCABULARY: Final = frozenset(
    {
        "meter", "meters", "customer", "subscription", "credit", "identifier", "event_name", "exist",
        "exists", "already", "duplicate", "unique", "inactive", "unknown", "invalid", "missing",
    }
)  # fmt: skip


def without(text: str, own: Iterable[str | None]) -> str:
    """*text* in lower case, without the event's *own* texts in it; so it is also free of ids."""
    text = text.lower()
    for word in own:
        if word and word.lower() not in _VOCABULARY:
            text = re.sub(rf"(?<![\w.-]){re.escape(word.lower())}(?![\w-])", "…", text)
    return text


def meaning(answer: Answer, own: Iterable[str | None]) -> Meaning:
    """What *answer*, a 4xx, is about, where *own* are the texts that the event brought along."""
    if answer.body.lstrip()[:1] == b"<":
        return Meaning.UNKNOWN  # a page: Payment Kit's answers are JSON, its gateway's are text
    text = without(answer.text, own)
    tests = (
        (Meaning.CREDENTIALS, "access token found in multiple" in text),
        (Meaning.DUPLICATE, _says_taken(text)),
        (Meaning.METER, _METER.search(text) and _TROUBLE.search(text)),
        (Meaning.CUSTOMER, _CUSTOMER.search(text) and _TROUBLE.search(text)),
        (Meaning.FIELD, _JOI.search(text)),
        # "Invalid meter" may well mean an unknown one, and to wait for it is the milder mistake.
        (Meaning.METER, _METER.search(text) and _INVALID.search(text)),
        (Meaning.CUSTOMER, _CUSTOMER.search(text) and _INVALID.search(text)),
        (Meaning.FIELD, _FIELD.search(text)),
    )
    return next((found for found, holds in tests if holds), Meaning.UNKNOWN)


def _says_taken(text: str) -> bool:
    return "identifier" in text and bool(_TAKEN.search(text)) and not _NOT_THERE.search(text)


def is_gateway_404(answer: Answer) -> bool:
    """Whether Blocklet Server's gateway hides a refusal behind `{"code":404,"error":"Not Found"}`.

    In production it answers so to a lapsed access key and to a missing role, and never says which.
    """
    fields = answer.object() or {}
    return answer.status == 404 and fields.get("code") == 404 and fields.get("error") == "Not Found"
