"""How fast per_agent is, beside its peers: `python -m benchmarks`, after `pip install '.[bench]'` in a checkout.

==============  =====================================================================================
`caller`        what one call costs the caller, while what it recorded is stored and delivered
`throughput`    events a second to the disk and to an upstream, and what each costs
`upstream`      one request for each event: beside what httpx does by itself
`backlog`       a million events that wait: rates, memory, disk, the next start
`sidecar`       requests a second over HTTP, beside an empty application on the same server
`ledger`        reports over many events
`guest`         what it costs a program to have it: import, idling, the way out
==============  =====================================================================================

Each measurement is a process of its own (`child`) on one processor; what it talks to (`sink`) is another on the
other. `clients` holds per_agent and its peers under one face; `reach` the goals; `show` and `plots` the tables
and pictures; `hot_path` the count that tests hold the caller's path to; `endurance` whether memory
stays flat for an hour.
"""
