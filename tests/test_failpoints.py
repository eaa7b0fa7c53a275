"""Every step of durability in the source has a failpoint behind it, or a reason why no death there can matter.

A step is a call after which a file, a folder, a database or a mapping is not what it was. Read from the source, so
that a new step without a point, and so without a death in `test_deaths.py`, fails here.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import per_agent
from per_agent.failpoint import POINTS

ROOT = Path(per_agent.__file__).parent
GROUND = ("intake.py", "journal", "spool", "agent", "ledger", "destinations", "sidecar")

# By the name of the method, whatever it is called on.
STEPS: Final = {
    "rename", "unlink", "rmtree", "rmdir", "mkdir", "link", "hardlink_to", "symlink", "symlink_to", "chmod", "touch",
    "fsync", "fdatasync", "posix_fallocate", "ftruncate", "truncate", "write_bytes", "write_text", "pack_into",
    "transaction", "transact", "Cache",
}  # fmt: skip
ONLY_OF_OS: Final = {"write", "remove", "replace", "pwrite", "writev"}
MAPPED: Final = {
    "self.file",
    "buffer",
    "new",
}  # what the journal's modules call a mapping that they write to

Step = tuple[str, str, str]
"""Module, function, and what it does."""

IN_THE_CALLER: dict[Step, tuple[str, str, str]] = {
    # a step that ends its function; and who comes to a point after calling which function
    ("journal/journal.py", "Journal._writer.write", "pack"): (
        "journal/journal.py",
        "_dying.write_and_die",
        "write",
    ),
    ("journal/slots.py", "Slots.release", "self.file[] ="): (
        "spool/inflow.py",
        "Inflow.written",
        "release",
    ),
    ("journal/layout.py", "write_head", "buffer[] ="): ("journal/file.py", "create", "write_head"),
    ("spool/salvage.py", "_write", "fsync"): ("spool/salvage.py", "replace", "_write"),
    ("spool/store.py", "Store.transaction", "transaction"): (
        "spool/spooler.py",
        "Spooler._commit",
        "transaction",
    ),
    ("spool/disk.py", "Disk.transaction", "transact"): ("spool/spooler.py", "Spooler._commit", "transaction"),
    ("spool/letters.py", "_write", "rename"): ("spool/letters.py", "_ask_holder", "_write"),
}

_EMPTY = "an empty folder is left, as it is where nobody recorded anything"
_ROBBED = "somebody deleted the journal: until the copy of it is whole, what was only in it is gone with the process"
_SOCKET = "a socket's file holds nothing: the next process tries it, and replaces it where nobody listens"
_PARTIAL = "nobody reads the file until it has its name"
_LAST = "the last of its steps: it only takes away what nobody reads any more"
_POWER = "for power loss: what a dead process did, the kernel keeps without it"
_UNBUILT = "what is not whole has another name, and is thrown away and built again"
_ROOM = "it is nothing but room: who opens the spool next makes it anew"

WITHOUT: dict[Step, str] = {
    ("journal/file.py", "create", "unlink"): "the disk refused the file, and no event is in it",
    (
        "intake.py",
        "Intake._adder.add",
        "pack",
    ): "as `Journal.write`, which takes its place where a test has armed the point behind it",
    ("journal/journal.py", "make", "files.make_folder"): _EMPTY,
    ("journal/journal.py", "Journal._replace", "unlink"): _ROBBED,
    ("journal/journal.py", "Journal._replace", "new[] ="): _ROBBED,
    ("ledger/connection.py", "_create", "files.make_folder"): _EMPTY,
    ("ledger/connection.py", "_create", "unlink"): _LAST,
    ("ledger/connection.py", "_create", "fsync"): _POWER,
    ("ledger/connection.py", "_file_problem", "unlink"): _LAST,
    ("ledger/connection.py", "_prepare", "COMMIT"): "it ends a transaction that has only read",
    ("sidecar/listeners.py", "_unix", "files.make_folder"): _EMPTY,
    ("sidecar/listeners.py", "_unix", "chmod"): _SOCKET,
    ("sidecar/listeners.py", "_unix", "unlink"): _SOCKET,
    ("sidecar/listeners.py", "_remove_stale", "unlink"): _SOCKET,
    ("sidecar/listeners.py", "_remove_file", "unlink"): _SOCKET,
    ("sidecar/token.py", "_make", "files.make_folder"): _EMPTY,
    ("sidecar/token.py", "_make", "files.create"): _PARTIAL,
    ("sidecar/token.py", "_make", "file.write"): _PARTIAL,
    ("sidecar/token.py", "_make", "unlink"): _LAST,
    ("spool/ballast.py", "Ballast._room_beside", "unlink"): _ROOM,
    ("spool/ballast.py", "Ballast.release", "unlink"): _ROOM,
    ("spool/ballast.py", "_allocated", "open"): _ROOM,
    (
        "spool/disk.py",
        "Disk.__init__",
        "mkdir",
    ): "the folder is there, as the lock that its claim holds lies in it; or it is a salvage's, begun anew",
    ("spool/folder.py", "prepare", "files.make_folder"): _EMPTY,
    (
        "spool/folder.py",
        "_cannot_lock",
        "open",
    ): "it asks the file system for locks, in a folder that is given up",
    ("spool/letters.py", "_make_requests", "mkdir"): _EMPTY,
    ("spool/letters.py", "_write", "unlink"): _PARTIAL,
    ("spool/letters.py", "_write", "files.create"): _PARTIAL,
    ("spool/letters.py", "_ask_holder", "unlink"): _LAST,
    ("spool/letters.py", "answer_requests.answer", "unlink"): _LAST,
    ("spool/salvage.py", "_sync", "fsync"): _POWER,
    ("spool/salvage.py", "_write", "open"): _UNBUILT,
    ("spool/salvage.py", "_write", "file.write"): _UNBUILT,
    ("spool/salvage.py", "finish", "rmtree"): _UNBUILT,
    ("spool/salvage.py", "_report_in", "unlink"): _UNBUILT,
    (
        "spool/salvage.py",
        "_report_in",
        "rename",
    ): "before it as after it, who goes on finds a report or makes it anew",
    ("spool/salvage.py", "finish", "mkdir"): "the report says its name, and who goes on finds it by that",
    (
        "spool/transaction.py",
        "Transaction.set_aside",
        "rename",
    ): "of a key, inside the transaction of a commit",
}


class Found(NamedTuple):
    """A step, or a point, at a place of a function."""

    line: int
    column: int
    what: str
    point: bool


def _modules(part: Path) -> list[Path]:
    return sorted(part.rglob("*.py")) if part.is_dir() else [part]


@cache
def functions() -> list[tuple[str, str, ast.FunctionDef]]:
    """Every function of the ground: its module, its name with those that it is in, and itself."""
    paths = [path for part in GROUND for path in _modules(ROOT / part)]
    trees = [(path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())) for path in paths]
    return [each for module, tree in trees for each in _functions(module, "", tree)]


def _functions(module: str, inside: str, node: ast.AST) -> Iterator[tuple[str, str, ast.FunctionDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef):
            yield module, inside + child.name, child
        name = getattr(child, "name", "")
        deeper = isinstance(child, ast.FunctionDef | ast.ClassDef)
        yield from _functions(module, f"{inside}{name}." if deeper else inside, child)


def _own_nodes(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """What a function consists of, without the functions in it."""
    left: list[ast.AST] = [child for child in function.body if not isinstance(child, ast.FunctionDef)]
    while left:
        node = left.pop()
        yield node
        left += [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.FunctionDef)]


def found_in(module: str, function: ast.FunctionDef) -> list[Found]:
    """The steps and the points of *function*, in their order. A transaction's step is the end of its block."""
    nodes = list(_own_nodes(function))
    ends = {
        item.context_expr: node.end_lineno
        for node in nodes
        if isinstance(node, ast.With)
        for item in node.items
    }
    found = []
    for node in nodes:
        if isinstance(node, ast.Call):
            if ast.unparse(node.func) == "failpoint.reach":
                found.append(Found(node.lineno, node.col_offset, node.args[0].value, point=True))
            elif (what := _step(node)) or (what := _writes_to_mapping(module, node)):
                end = ends.get(node) if what.startswith("transact") else None
                place = (node.lineno, node.col_offset) if end is None else (end, 10_000)
                found.append(Found(*place, what, point=False))
        elif isinstance(node, ast.Assign) and (what := _assigns_to_mapping(module, node)):
            found.append(Found(node.lineno, node.col_offset, what, point=False))
    return sorted(found)


def _step(call: ast.Call) -> str | None:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    on = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    words = [
        node.value
        for node in ast.walk(call)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    if name in STEPS or (name in ONLY_OF_OS and on == "os"):
        return name
    if on == "files" and name in ("create", "make_folder"):
        return f"files.{name}"
    if name == "write" and on == "file":
        return "file.write"
    if name == "replace" and len(call.args) == 1 and not call.keywords:  # a path's: a text's takes two
        return name
    if name == "open" or ast.unparse(call.func) == "open":
        creates = "O_CREAT" in ast.unparse(call) or any(
            set("wax+") & set(word) for word in words[:2] if len(word) <= 3
        )
        return "open" if creates else None
    if name in ("execute", "_sql") and any(
        word.startswith("COMMIT") or "wal_checkpoint" in word for word in words
    ):
        return "COMMIT" if "COMMIT" in words else "wal_checkpoint"
    return None


def _writes_to_mapping(module: str, call: ast.Call) -> str | None:
    return "pack" if module.startswith(("journal/", "intake")) and ast.unparse(call.func) == "pack" else None


def _assigns_to_mapping(module: str, node: ast.Assign) -> str | None:
    for target in node.targets:
        if module.startswith("journal/") and isinstance(target, ast.Subscript):
            name = ast.unparse(target.value)
            if name in MAPPED:
                return f"{name}[] ="
    return None


def without_a_point() -> set[Step]:
    """The steps that no point follows before the next step, or before their function's end."""
    bare: set[Step] = set()
    for module, name, function in functions():
        events = found_in(module, function)
        following = [*events[1:], None][: len(events)]
        bare |= {
            (module, name, event.what)
            for event, after in zip(events, following, strict=True)
            if not event.point and (after is None or not after.point)
        }
    return bare


def test_a_new_step_of_durability_has_a_failpoint_behind_it():
    bare = without_a_point()
    assert bare - IN_THE_CALLER.keys() - WITHOUT.keys() == set(), (
        "each needs a point, and a death in test_deaths.py"
    )
    assert (IN_THE_CALLER.keys() | WITHOUT.keys()) - bare == set(), (
        "what is excused is there and has no point"
    )


def test_a_step_that_ends_its_function_has_its_point_where_that_is_called():
    by_name = {(module, name): function for module, name, function in functions()}
    for step, (module, name, callee) in IN_THE_CALLER.items():
        function = by_name[module, name]
        calls = [
            node.lineno
            for node in _own_nodes(function)
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == callee
        ]
        points = [found.line for found in found_in(module, function) if found.point]
        assert calls, step
        assert points, step
        assert max(points) > min(calls), step


def test_the_points_are_those_that_the_source_comes_to():
    reached = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "failpoint.reach",
                "failpoint.armed",
            ):
                reached.add(ast.literal_eval(node.args[0]))
    assert reached == POINTS


def test_the_source_has_the_steps_that_this_reads_from_it():
    steps = {
        (module, event.what) for module, _, function in functions() for event in found_in(module, function)
    }
    # One of each kind, so that a reader of the source that has gone blind is seen.
    assert steps >= {
        ("journal/file.py", "posix_fallocate"),
        ("journal/slots.py", "self.file[] ="),
        ("journal/journal.py", "rename"),
        ("journal/journal.py", "pack"),
        ("journal/left.py", "unlink"),
        ("spool/folder.py", "rmtree"),
        ("spool/folder.py", "open"),
        ("spool/folder.py", "fsync"),
        ("spool/letters.py", "file.write"),
        ("spool/letters.py", "files.create"),
        ("spool/spooler.py", "transaction"),
        ("spool/disk.py", "Cache"),
        ("spool/disk.py", "wal_checkpoint"),
        ("ledger/database.py", "COMMIT"),
        ("ledger/connection.py", "link"),
    }
