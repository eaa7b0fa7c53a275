"""The sidecar: the agent as a daemon, which takes events over HTTP on a Unix socket or on loopback.

===============  ==========================================================================================
`service`        what all handlers share: the agent, the settings, who may
`app`            from a request to a response, without sockets
`hot`            the paths that take events in, each a function from a whole request to its answer
`access`         who may talk to it, and under which name it may be called; `asked` is a request that may
`body`           a request's body, bounded in every direction
`answer`         what a request is answered with; `problems`: what went wrong, in the shape of each wire form
`events`         our own form, `/v1/events`, and its batches (`batch`); `per` and `payment_kit` speak the upstreams'
`records`        events as nearly all come, read straight into their fields
`recent`         identifiers accepted lately, so that a repeated request is accepted once
`proxy`          what is not ours to answer goes to the upstream and comes back verbatim
`local`          the upstreams' reporting calls, answered from the embedded ledger
`operations`     for operators: health, status, books; `dead_letters`, `metrics`, `openapi`
`direct`         uvicorn's HTTP protocol, with a short way for the hot paths: no task, no parsing again
`protocol`       the same with `bounds` on senders
`listeners`      sockets, made here or inherited from systemd
`server`         start, signals, drain, stop; `systemd` tells the service manager, `log` the journal
===============  ==========================================================================================
"""
