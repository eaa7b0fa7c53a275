"""`RawDisk`: how diskcache turns keys and values into columns and back, without ever pickling or unpickling."""

import diskcache

from per_agent.errors import SpoolCorrupt


class RawDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache ships no types
    """Keys are text, values are bytes, both as they are. Nothing is ever pickled or unpickled."""

    def put(self, key: object) -> tuple[str, bool]:
        return text(key), True

    def get(self, key: object, raw: object) -> str:
        if raw != 1 or type(key) is not str:
            raise SpoolCorrupt("the spool holds a key that per_agent did not write")
        return key

    def store(self, value: object, read: object, key: object = None) -> tuple[int, int, None, bytes]:
        if read:
            raise SpoolCorrupt(f"a value of the spool must be bytes, not a file (key {key!r})")
        return len(content(value)), diskcache.core.MODE_RAW, None, content(value)

    def fetch(self, mode: object, filename: object, value: object, read: object) -> bytes:
        if mode != diskcache.core.MODE_RAW or filename is not None or read or type(value) is not bytes:
            raise SpoolCorrupt("the spool holds a value that per_agent did not write")
        return value

    def filename(self, key: object = None, value: object = None) -> tuple[str, str]:  # noqa: ARG002  (diskcache's)
        raise SpoolCorrupt("the spool keeps no value files")

    def remove(self, file_path: object) -> None:
        """Nothing to remove: the spool keeps no value files."""


def text(key: object) -> str:
    """*key*, which must be text. Raises `SpoolCorrupt` for anything else, which diskcache would pickle."""
    if type(key) is not str:
        raise SpoolCorrupt(f"a key of the spool must be text, not {type(key).__name__}")
    return key


def content(value: object) -> bytes:
    """*value*, which must be bytes. Raises `SpoolCorrupt` for anything else, as above."""
    if type(value) is not bytes:
        raise SpoolCorrupt(f"a value of the spool must be bytes, not {type(value).__name__}")
    return value
