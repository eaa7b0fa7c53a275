"""All that takes part, in one folder: the oracle, two sidecars, producers, clients, and their notes.

Folder `a` is shared by several producers, of which the first is never killed; sidecar `b` is struck; the producer
on `c` delivers to it; sidecar `d` lives on. All logs lie in `logs`, all notes in `notes`.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from sidecar_process import SidecarProcess
from waiting import until

from per_agent import Ledger
from soak import plan
from soak.clients import Client
from soak.oracle import OracleServer
from soak.producer import TIMEOUT, Task

SOAK: Final = Path(__file__).parent
FOLDERS: Final = {"a": "a", "b": "b/data", "c": "c", "d": "d/data"}
START: Final = 180.0
"""Seconds that all may take to start, on a machine that does much else."""
SIDECAR: Final = """
[intake]
buffer_events = 10000
[spool]
adopt_interval = 1.0
[delivery]
backoff_initial = 0.1
backoff_max = 1.0
retry_after_max = 2.0
probe_interval = 0.5
[destinations.per]
type = "per"
activity_token = "token"
url = "{url}"
timeout = {timeout}
[destinations.payment_kit]
type = "payment_kit"
access_key = "key"
url = "{url}"
timeout = {timeout}
[destinations.ledger]
type = "ledger"
"""


class ProducerProcess:
    """A producer from the outside, over its lives: each has its own notes."""

    def __init__(self, stage: "Stage", slot: str, threads: int, rate: float, *, linger: float = 0.05) -> None:
        self._stage, self.slot, self._threads, self._rate = stage, slot, threads, rate
        self._linger = linger
        self.life = -1
        self.process: subprocess.Popen[str] | None = None

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Begin another life, if it is dead."""
        if self.running:
            return
        self.life += 1
        stage = self._stage
        prefix = f"{self.slot}.{self.life}"
        notes = stage.folder / "notes" / prefix
        notes.write_bytes(bytes(8 * plan.THREADS))
        group = self.slot[0]
        upstream = f"unix:{stage.sidecars['b'].socket}" if group == "c" else stage.oracle.url
        task = Task(
            stage.seed,
            str(stage.data_dir(group)),
            str(notes),
            prefix,
            self._threads,
            self._rate,
            upstream,
            self._linger,
        )
        with (stage.folder / "logs" / self.slot).open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(SOAK), "producer", task.as_json()],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
            )

    def say(self, word: str) -> None:
        """`calm`, `leave` or `quit`."""
        if self.running:
            assert self.process is not None
            assert self.process.stdin is not None
            self.process.stdin.write(f"{word}\n")
            self.process.stdin.flush()

    def signal(self, number: int) -> None:
        if self.running:
            assert self.process is not None
            self.process.send_signal(number)

    def wait(self, timeout: float) -> int:
        assert self.process is not None
        return self.process.wait(timeout)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait(10)


class Stage:
    """Makes everything ready; `start` and `end` it. *rate* is about how many events a second all record."""

    def __init__(self, folder: Path, seed: int, rate: float) -> None:
        self.folder, self.seed = folder, seed
        for name in ("notes", "logs", "a", "c"):
            (folder / name).mkdir(parents=True)
        self.oracle = OracleServer(folder, seed).start()
        config = SIDECAR.format(url=self.oracle.url, timeout=TIMEOUT)
        self.sidecars = {name: SidecarProcess(folder / name, config) for name in "bd"}
        share = rate / 12
        self.producers = [
            ProducerProcess(self, "a0", 2, share),
            ProducerProcess(self, "a1", 2, share),
            ProducerProcess(self, "a2", 1, share, linger=1.0),
            ProducerProcess(self, "c0", 2, share, linger=1.0),
        ]
        # A request of a client holds some three events.
        self.clients = [
            Client(seed, f"{name}{slot}.0", self.sidecars[name], share / 3, unix=slot % 2 == 0)
            for name, slots in (("b", 3), ("d", 2))
            for slot in range(slots)
        ]
        self.began = time.time()
        for name in "abd":
            self._make_meters(name)

    @property
    def struck(self) -> list[ProducerProcess]:
        """Those that may be killed."""
        return self.producers[1:]

    def data_dir(self, group: str) -> Path:
        return self.folder / FOLDERS[group]

    def ledger(self, group: str) -> Ledger:
        ledger = Ledger()
        ledger.open(self.data_dir(group))
        return ledger

    def _make_meters(self, group: str) -> None:
        self.data_dir(group).mkdir(mode=0o700, parents=True, exist_ok=True)
        ledger = self.ledger(group)
        for livemode in (True, False):
            for name in plan.METERS:
                ledger.meters.create(name=name, event_name=name, unit="pieces", livemode=livemode)
        ledger.close()

    def start(self) -> None:
        for sidecar in self.sidecars.values():
            sidecar.start(wait=False)
        for producer in self.producers:
            producer.start()
        for sidecar in self.sidecars.values():
            until(sidecar._is_ready, START)
        for client in self.clients:
            client.start()
        until(lambda: all(self._returned(each) for each in self.producers), START)

    def _returned(self, producer: ProducerProcess) -> int:
        notes = self.folder / "notes" / f"{producer.slot}.{producer.life}"
        return sum(memoryview(notes.read_bytes()).cast("Q"))

    def accepted(self) -> int:
        """About how many events were accepted until now."""
        notes = (self.folder / "notes").iterdir()
        mapped = sum(sum(memoryview(each.read_bytes()).cast("Q")) for each in notes)
        return mapped + sum(len(client.answered) for client in self.clients)

    def note_clients(self) -> None:
        """Write down what the clients know, when they have ended."""
        known = {
            "answered": [name for client in self.clients for name in client.answered],
            "asked": [name for client in self.clients for name in client.asked],
            "resent": {g: sum(c.resent for c in self.clients if c.name[7] == g) for g in "bd"},
            "strange": [words for client in self.clients for words in client.strange],
        }
        (self.folder / "clients.json").write_text(json.dumps(known))

    def end(self) -> None:
        """Leave no process behind, whatever happened."""
        for client in self.clients:
            client.over.set()
            client.broken.set()
        for producer in self.producers:
            if producer.running:
                producer.signal(signal.SIGCONT)
                producer.kill()
        for sidecar in self.sidecars.values():
            if sidecar.process is not None and sidecar.process.poll() is None:
                sidecar.signal(signal.SIGCONT)
                sidecar.kill()
        if self.oracle.running:
            self.oracle.signal(signal.SIGCONT)
            self.oracle.kill()
