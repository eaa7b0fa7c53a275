"""A web application for gunicorn that bills each request to the user that it names, and answers with its process.

`gunicorn gunicorn_app:application`, with the data folder in `RECORD_IN`. With a user in `RECORD_AT_LOAD` it records
an event where it is loaded: with `--preload` that is the master, whose threads then run before a worker is forked.
"""

import os

from per_agent import Agent

agent = Agent(os.environ["RECORD_IN"])
if "RECORD_AT_LOAD" in os.environ:
    agent.add_activity("acme", os.environ["RECORD_AT_LOAD"], "active").stored(30)


def application(environ, start_response):
    agent.add_activity("acme", environ["QUERY_STRING"], "active")
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
