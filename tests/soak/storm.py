"""What is done to them: faults dealt from a shuffled deck, at random moments, all from one seed.

A deck and not a die, so that each kind of fault comes about once in each round, however short the run is.
What a fault takes away comes back after a while, or at the end.
"""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from per_agent import Unavailable
from soak.operators import Operator
from soak.stage import FOLDERS, Stage

FAIR: Final = {
    "500": 0.003, "503": 0.003, "429": 0.002, "401": 0.001, "cut before": 0.003, "cut after": 0.006,
    "silent": 0.001, "slow": 0.01, "truncated": 0.004, "page": 0.001,
}  # fmt: skip
FOUL: Final = {
    "failing": {"500": 0.3, "503": 0.3},
    "rate limit": {"429": 0.9},
    "locked out": {"401": 1.0},
    "cutting": {"cut before": 0.15, "cut after": 0.3, "truncated": 0.15},
    "silence": {"silent": 0.5},
    "slow": {"slow": 1.0},
    "login page": {"page": 1.0},
}


class Storm:
    """Strikes a `Stage` until it is told to end.

    Attributes:
        dealt: how often each fault came.
        wrong: what was found to be wrong meanwhile, in words: the verdict is "no" then.
    """

    def __init__(self, stage: Stage, seed: int, say: Callable[[str], None]) -> None:
        self._stage = stage
        self._draw = random.Random(seed)
        self._say = say
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._busy: set[str] = set()
        self._foul: dict[str, str] = {}
        self._log_at = 0  # where in its log the sidecar's present life begins
        self.dealt: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._operator = Operator(stage, self.wrong, say)

    def rage(self, seconds: float, enough: Callable[[], bool]) -> None:
        """Strike for so long, and up to as long again until it was *enough*; then all that was taken is back."""
        end = time.monotonic() + seconds
        self._tell_weather()
        deck: list[Callable[[], bool]] = []
        deal_at = time.monotonic() + self._draw.uniform(0.5, 1.5)
        while (now := time.monotonic()) < end or (now < end + seconds and not enough()):
            self._do_due(now)
            if now >= deal_at:
                deck = deck or self._shuffled()
                card = deck.pop()
                if not card():
                    deck.insert(0, card)  # whom it would strike is down already: later
                deal_at = now + self._draw.uniform(0.2, 1.6)
            time.sleep(0.02)
        while self._later:
            self._do_due(float("inf"))
        self._operator.end()
        self._foul.clear()
        self._stage.oracle.weather(weather={})
        self._stage.oracle.settings(meters={})

    def _do_due(self, now: float) -> None:
        for due in sorted((each for each in self._later if each[0] <= now), key=lambda each: each[0]):
            self._later.remove(due)
            due[1]()

    def _shuffled(self) -> list[Callable[[], bool]]:
        deck = [
            self._kill_producer,
            self._kill_producer,
            self._kill_newborn,
            self._send_producer_away,
            self._kill_sidecar,
            self._stop_sidecar,
            self._kill_oracle,
            self._stop_oracle,
            self._freeze,
            self._freeze,
            self._sleep_meter,
            self._sleep_ledger_meter,
            self._look_after_letters,
            self._audit,
            *(lambda kind=kind: self._worsen(kind) for kind in FOUL),
        ]
        self._draw.shuffle(deck)
        return deck

    def _dealt(self, what: str, details: str = "") -> None:
        self.dealt[what] += 1
        self._say(f"{what} {details}".rstrip())

    def _after(self, low: float, high: float, do: Callable[[], None]) -> None:
        self._later.append((time.monotonic() + self._draw.uniform(low, high), do))

    def _take(self, who: str) -> bool:
        """Whether *who* is free to be struck: what is frozen or down already, is left alone."""
        if who in self._busy:
            return False
        self._busy.add(who)
        return True

    # Processes

    def _kill_producer(self) -> bool:
        producer = self._draw.choice(self._stage.struck)
        if not self._take(producer.slot):
            return False
        self._dealt("producer killed", producer.slot)
        producer.kill()
        self._after(0, 1.5, lambda: self._revive(producer.slot, producer.start))
        return True

    def _kill_newborn(self) -> bool:
        """Kill one twice: also while it is starting, and taking over what the first death left."""
        producer = self._draw.choice(self._stage.struck)
        if not self._take(producer.slot):
            return False
        self._dealt("producer killed", producer.slot)
        producer.kill()
        producer.start()

        def again() -> None:
            self._dealt("producer killed at its start", producer.slot)
            producer.kill()
            self._after(0, 1, lambda: self._revive(producer.slot, producer.start))

        self._after(0, 1.2, again)
        return True

    def _send_producer_away(self) -> bool:
        producer = self._draw.choice(self._stage.struck)
        if not self._take(producer.slot):
            return False
        self._dealt("producer ended", producer.slot)
        producer.say("leave")

        def back() -> None:
            if producer.wait(30) != 0:
                self.wrong.append(f"producer {producer.slot} ended with {producer.wait(0)}")
            self._revive(producer.slot, producer.start)

        self._after(1, 2, back)
        return True

    def _kill_sidecar(self) -> bool:
        if not self._take("b"):
            return False
        self._dealt("sidecar killed")
        self._stage.sidecars["b"].kill()
        self._after(0.2, 2, lambda: self._revive("b", self._start_sidecar))
        return True

    def _stop_sidecar(self) -> bool:
        if not self._take("b"):
            return False
        self._dealt("sidecar stopped")
        sidecar = self._stage.sidecars["b"]
        was_ready = b"the sidecar is ready" in sidecar.log.read_bytes()[self._log_at :]
        sidecar.signal(signal.SIGTERM)

        def back() -> None:
            code = sidecar.wait()
            # Before it takes anything, it may as well end at once.
            if code != 0 and (was_ready or code != -signal.SIGTERM):
                self.wrong.append(f"the sidecar ended with {code}")
            self._revive("b", self._start_sidecar)

        self._after(2, 4, back)
        return True

    def _start_sidecar(self) -> None:
        sidecar = self._stage.sidecars["b"]
        self._log_at = sidecar.log.stat().st_size
        sidecar.start(wait=False)

    def _kill_oracle(self) -> bool:
        if not self._take("oracle"):
            return False
        self._dealt("upstream killed")
        self._stage.oracle.kill()
        self._after(0.2, 2.5, lambda: self._revive("oracle", self._stage.oracle.start))
        return True

    def _stop_oracle(self) -> bool:
        if not self._take("oracle"):
            return False
        self._dealt("upstream stopped")
        self._stage.oracle.stop()
        self._after(0.2, 2.5, lambda: self._revive("oracle", self._stage.oracle.start))
        return True

    def _freeze(self) -> bool:
        stage = self._stage
        everybody: list[tuple[str, Callable[[int], None]]] = [
            *((each.slot, each.signal) for each in stage.producers),
            *((name, sidecar.signal) for name, sidecar in stage.sidecars.items()),
            ("oracle", stage.oracle.signal),
        ]
        who, send = self._draw.choice(everybody)
        if not self._take(who):
            return False
        self._dealt("frozen", who)
        send(signal.SIGSTOP)
        self._after(0.2, 3, lambda: self._revive(who, lambda: send(signal.SIGCONT)))
        return True

    def _revive(self, who: str, how: Callable[[], Any]) -> None:
        how()
        self._busy.discard(who)
        if who == "oracle":
            self._tell_weather()

    # The upstreams

    def _worsen(self, kind: str) -> bool:
        upstream = self._draw.choice(("per", "payment_kit"))
        self._dealt(kind, upstream)
        self._foul[upstream] = kind
        self._tell_weather()

        def better() -> None:
            self._foul.pop(upstream, None)
            self._tell_weather()

        self._after(1, 4, better)
        return True

    def _tell_weather(self) -> None:
        weather = {each: FOUL.get(self._foul.get(each, ""), FAIR) for each in ("per", "payment_kit")}
        asleep = {"sleepy": "inactive"} if "meter" in self._foul else {}
        self._tell(lambda: self._stage.oracle.weather(weather=weather))
        self._tell(lambda: self._stage.oracle.settings(meters=asleep))

    def _tell(self, command: Callable[[], None]) -> None:
        if "oracle" not in self._busy:  # else it is told when it is back
            command()

    def _sleep_meter(self) -> bool:
        self._dealt("meter asleep", "payment_kit")
        self._foul["meter"] = "asleep"
        self._tell_weather()

        def awake() -> None:
            self._foul.pop("meter", None)
            self._tell_weather()

        self._after(2, 6, awake)
        return True

    def _sleep_ledger_meter(self) -> bool:
        group = self._draw.choice("abd")
        if not self._take(f"meter {group}"):
            return False
        self._dealt("meter asleep", f"ledger {group}")
        self._set_meter(group, "deactivate")
        self._after(1, 5, lambda: self._revive(f"meter {group}", lambda: self._set_meter(group, "activate")))
        return True

    def _set_meter(self, group: str, what: str) -> None:
        ledger = self._stage.ledger(group)
        try:
            for livemode in (True, False):
                getattr(ledger.meters, what)("sleepy", livemode=livemode)
        except Unavailable:
            # The file is busy: whoever wants the meter awake must get through.
            if what == "activate":
                self._after(0.2, 0.5, lambda: self._set_meter(group, what))
        finally:
            ledger.close()

    # Who looks after it all meanwhile

    def _look_after_letters(self) -> bool:
        group = self._draw.choice("abd")
        self._dealt("dead letters purged", group)
        self._operator.purge(group)
        return True

    def _audit(self) -> bool:
        group = self._draw.choice(list(FOLDERS))
        self._dealt("books audited", group)
        self._operator.audit(group)
        return True
