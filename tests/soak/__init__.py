"""The soak: everything real, everything struck at random, and an oracle that knows what must have arrived.

`python -m tests.soak --seconds 60 --seed 7` in a checkout. Producers (threads, processes, clients of sidecars)
record events whose content follows from their names and the seed (`plan`), upstreams act on them or fail on
purpose and write down which (`oracle`), and processes are killed, stopped and starved meanwhile (`storm`). Then
all faults end, everything drains (`course`), what is on the disks is read (`evidence`), and judged (`verdict`).
"""
