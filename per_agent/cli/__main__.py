"""`python -m per_agent.cli` is `per-agent`."""

from per_agent.cli.app import main

main()
