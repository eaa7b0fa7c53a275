"""A web application for gunicorn that bills each request to the user that it names, and answers with its process.

`gunicorn gunicorn_app:application`, with the data folder in `RECORD_IN`. It records an event when it is loaded,
too: with `--preload` that is the master, so the agent's threads run there before a worker is forked.
"""

import os

from per_agent import Agent

agent = Agent(os.environ["RECORD_IN"])
agent.add_activity("acme", f"loaded-{os.getpid()}", "active")


def application(environ, start_response):
    agent.add_activity("acme", environ["QUERY_STRING"], "active")
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
