"""The course of a soak: a storm, then calm, then everything drains, is closed, and is written down."""

import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from per_agent import Agent
from soak import plan
from soak.operators import letter_name
from soak.producer import add, agent_for
from soak.stage import FOLDERS, Stage
from soak.storm import Storm
from soak.verdict import PROVES, unseen
from soak.watch import Watch, size

QUIET: Final = 40  # events pending in a folder that is about drained, while a trickle goes on


@dataclass(frozen=True)
class Options:
    """How to run. *still*: without faults."""

    seconds: float
    seed: int
    rate: float
    patience: float  # seconds that draining may take
    still: bool = False


class Stuck(Exception):
    """Something did not drain in time: what was accepted did not arrive."""


class Course:
    """Runs one soak in *folder*, and leaves there all that `evidence` reads."""

    def __init__(
        self,
        folder: Path,
        options: Options,
        say: Callable[[str], None],
        say_fault: Callable[[str], None],
    ) -> None:
        self._folder, self._options, self._say = folder, options, say
        self._stage = Stage(folder, options.seed, options.rate)
        self._storm = Storm(self._stage, options.seed, say_fault)
        self._wrong: list[str] = []
        self._fresh: Counter[str] = Counter()
        self._saw: Counter[str] = Counter()
        self._read = 0  # bytes of the oracle's score

    def run(self) -> None:
        stage, options = self._stage, self._options
        watch = Watch(
            {
                "producer a0": lambda: _pid(stage.producers[0].process),
                "sidecar d": lambda: _pid(stage.sidecars["d"].process),
            }
        )
        try:
            stage.start()
            watch.start()
            threading.Thread(target=self._progress, args=(watch.over,), daemon=True).start()
            if options.still:
                time.sleep(options.seconds)
            else:
                self._storm.rage(options.seconds, self._saw_enough)
            watch.over.set()
            self._say(f"calm: {stage.accepted():,} accepted")
            self._calm_down()
            self._end_producers()
            self._drain()
            self._letters()
        except Stuck as stuck:
            self._wrong.append(str(stuck))
        finally:
            watch.over.set()
            self._write(watch)
            stage.end()

    def _progress(self, over: threading.Event) -> None:
        while not over.wait(10.0):
            faults = sum(self._storm.dealt.values())
            self._say(f"{self._stage.accepted():,} accepted, {faults:,} faults dealt")

    def _saw_enough(self) -> bool:
        if self._options.seconds < PROVES:
            return True
        with (self._folder / "upstream-score.ndjson").open("rb") as score:
            score.seek(self._read)
            lines = score.read().rpartition(b"\n")[0]
        self._read += len(lines) + 1 if lines else 0
        self._saw.update(json.loads(line)["x"] for line in lines.splitlines() if line.startswith(b'{"x"'))
        return not unseen(self._saw, self._storm.dealt)

    # Calm

    def _calm_down(self) -> None:
        stage = self._stage
        for client in stage.clients:
            client.over.set()
        for producer in stage.producers:
            producer.start()
            producer.say("calm")
        for client in stage.clients:
            client.join(self._options.patience)
            if client.is_alive():
                raise Stuck(f"{client.name} is not answered")
        self._await("about drained", lambda: all(self._pending(group) < QUIET for group in FOLDERS))

    def _end_producers(self) -> None:
        for producer in self._stage.producers:
            producer.say("quit")
        for producer in self._stage.producers:
            try:
                code = producer.wait(self._options.patience)
            except subprocess.TimeoutExpired:
                raise Stuck(f"producer {producer.slot} does not end") from None
            if code != 0:
                self._wrong.append(f"producer {producer.slot} ended with {code}")

    def _drain(self) -> None:
        """Open each folder once more, and record fresh events until nothing is pending any more."""
        stage = self._stage
        for group in "ca":
            upstream = f"unix:{stage.sidecars['b'].socket}" if group == "c" else stage.oracle.url
            with agent_for(stage.data_dir(group), upstream) as agent:
                self._await(f"{group} drained", lambda agent=agent, group=group: self._flushed(agent, group))
                # Spools with dead letters stay; those without are absorbed, and their folders removed.
                self._await(f"{group} tidied", lambda group=group: self._tidy(group))
        for group in "bd":
            self._await(f"{group} drained", lambda group=group: self._fresh_over_http(group))

    def _tidy(self, group: str) -> bool:
        folder = self._stage.data_dir(group)
        letters = {each.spool for each in Agent(folder).dead_letters}
        return len({each.name for each in (folder / "spools").iterdir()} - letters) <= 1

    def _flushed(self, agent: Agent, group: str) -> bool:
        for _ in range(2):
            add(agent, plan.event(self._stage.seed, self._fresh_name(f"{group}80.0.{plan.CALM}")))
        return agent.flush(1.0)

    def _fresh_name(self, prefix: str) -> str:
        name = f"{prefix}.{self._fresh[prefix]}"
        self._fresh[prefix] += 1
        return name

    def _fresh_over_http(self, group: str) -> bool:
        sidecar = self._stage.sidecars[group]
        events = [
            plan.event(self._stage.seed, self._fresh_name(f"{group}80.0.{plan.CALM}")) for _ in range(2)
        ]
        with sidecar.client() as http:
            http.post("/v1/events", json=[plan.record(each) for each in events]).raise_for_status()
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            books = sidecar.get("/v1/books")["destinations"].values()
            if all(each["pending"] == 0 for each in books):
                return True
            time.sleep(0.1)
        return False

    # Dead letters

    def _letters(self) -> None:
        """Write down those that lie there, heal their cause, send all again, and drain once more."""
        stage = self._stage
        with (self._folder / "lying").open("w") as file:
            for group in "abd":
                for each in Agent(stage.data_dir(group)).dead_letters:
                    file.write(f"{group} {each.lane} {letter_name(each.letter.event)}\n")
        stage.oracle.weather(healed=True)
        for group in "abd":
            letters = Agent(stage.data_dir(group)).dead_letters
            letters.requeue(list(letters))
        self._drain()

    # Looking

    def _pending(self, group: str) -> int:
        books = Agent(self._stage.data_dir(group)).books()
        return max(counts.pending for counts in books.values())

    def _await(self, what: str, come: Callable[[], bool]) -> None:
        end = time.monotonic() + self._options.patience
        told = time.monotonic()
        while not come():
            if time.monotonic() > end:
                pending = {group: self._pending(group) for group in FOLDERS}
                raise Stuck(f"not {what} within {self._options.patience:.0f} s; pending: {pending}")
            if time.monotonic() > told + 5:
                told = time.monotonic()
                self._say(f"waiting until {what}: {self._pending_words()}")
            time.sleep(0.5)
        self._say(what)

    def _pending_words(self) -> str:
        return ", ".join(f"{group} {self._pending(group):,}" for group in FOLDERS) + " pending"

    def _write(self, watch: Watch) -> None:
        stage = self._stage
        for name, sidecar in stage.sidecars.items():
            if sidecar.process is not None and sidecar.process.poll() is None and sidecar.stop() != 0:
                self._wrong.append(f"sidecar {name} did not end with 0")
        stage.note_clients()
        said: dict[str, Any] = {
            "seed": self._options.seed,
            "seconds": self._options.seconds,
            "still": self._options.still,
            "began": stage.began,
            "ended": time.time(),
            "faults": self._storm.dealt,
            "wrong": self._wrong + self._storm.wrong,
            "fresh": self._fresh,
            "samples": watch.samples,
            "sizes": {group: size(stage.data_dir(group)) for group in FOLDERS},
        }
        (self._folder / "run.json").write_text(json.dumps(said))


def _pid(process: Any) -> int:
    return 0 if process is None else int(process.pid)
