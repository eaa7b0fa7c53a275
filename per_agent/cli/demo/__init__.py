"""`demo`: what this program promises, shown on a fresh machine: both ends are killed, and nothing is lost.

===========  ======================================================================
`command`    the options, and the code that it ends with
`story`      the acts, told as they go
`plan`       the events: drawn from a seed, so that all processes know them
`stage`      the folder: what lies where, who is configured how
`processes`  those that are started; none outlives the demo
`upstream`   the sidecar that stands for Per and Payment Kit, and is killed
`recorder`   the application: the process that records, and is killed; its notes
`watch`      what waits where, looked at again and again
`teller`     the steps, and below them the live display
`verdict`    what must be true at the end, checked
`ending`     the report, the books and the verdict, shown
===========  ======================================================================
"""

from per_agent.cli.demo.command import register

__all__ = ["register"]
