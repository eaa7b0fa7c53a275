"""The crash-safe front: a memory-mapped file that an event is written to before `add_*` returns.

Decision. What a process has written to a shared mapping, the kernel keeps, however the process dies; and
writing to it is no system call, so it does not give up the interpreter's lock to a busy thread, as `os.write`
does. So between `add_*` and the commit an event lies here as well as in memory. Given up: power loss within
those moments, which only an fsync in the caller's way could survive, and disk space that is set aside.

A journal has its life in three places. It is made by a process's first event, in `<data_dir>/journals`, since
a spool is not open yet; nothing of it has been committed then. The spooler moves it into the spool's folder,
and with each commit notes in the database which of its slots that commit stored; so what a dead process left
can be told apart to the event. The next holder of the spool stores the rest under that same note.
"""

from per_agent.journal.file import FOLDER
from per_agent.journal.journal import Journal, Place, Write, make
from per_agent.journal.layout import RECORD, ROOM, SLOT, WHOLE, Head
from per_agent.journal.left import Left, abandoned, files, is_abandoned, pending, read, remove, take
from per_agent.journal.slots import JournalFull, Slots, no_slots
from per_agent.journal.stamps import Stamps

__all__ = [
    "FOLDER",
    "RECORD",
    "ROOM",
    "SLOT",
    "WHOLE",
    "Head",
    "Journal",
    "JournalFull",
    "Left",
    "Place",
    "Slots",
    "Stamps",
    "Write",
    "abandoned",
    "files",
    "is_abandoned",
    "make",
    "no_slots",
    "pending",
    "read",
    "remove",
    "take",
]
