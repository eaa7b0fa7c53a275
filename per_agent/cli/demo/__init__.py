"""`demo`: what this program promises, shown on a fresh machine: a process is killed, and nothing is lost.

===========  ======================================================================
`command`    the steps, told as they go
`plan`       the events: drawn from a seed, so that both processes know them
`recorder`   the process that records them, and is killed; its notes
`verdict`    what must be true at the end, checked against the ledger and the books
===========  ======================================================================
"""

from per_agent.cli.demo.command import register

__all__ = ["register"]
