"""The sidecar: the agent as a daemon, which takes events over HTTP on a Unix socket or on loopback.

===============  ==========================================================================================
`service`        what all handlers share: the agent, the settings, who may
`app`            from a request to a response, without sockets; the hot paths stand here
`access`         who may talk to it, and under which name it may be called
`body`           a request's body, bounded in every direction
`problems`       what went wrong, in the shape that each wire form's clients read
`events`         our own form, `/v1/events`; `per` and `payment_kit` speak the upstreams'
`recent`         identifiers accepted lately, so that a repeated request is accepted once
`proxy`          what is not ours to answer goes to the upstream and comes back verbatim
`local`          the upstreams' reporting calls, answered from the embedded ledger
`operations`     for operators: health, status, books; `dead_letters`, `metrics`, `openapi`
`protocol`       uvicorn's HTTP protocol with bounds on senders
`listeners`      sockets, made here or inherited from systemd
`server`         start, signals, drain, stop; `systemd` tells the service manager, `log` the journal
===============  ==========================================================================================
"""
