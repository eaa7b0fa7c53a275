"""A small web application that bills: an activity and a metered call for each request. Serves until stdin ends.

`python tests/wsgi_app.py DATA_DIR` prints its port.
"""

import sys
import threading
from socketserver import ThreadingMixIn
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from per_agent import Agent

agent = Agent(sys.argv[1])


def application(environ, start_response):
    asked = parse_qs(environ["QUERY_STRING"])
    customer, user = asked["customer"][0], asked["user"][0]
    agent.add_activity(customer, user, "page-view")
    agent.add_meter_event(
        "api.calls", customer_id=customer, value="1.5", metadata={"path": environ["PATH_INFO"]}
    )
    body = f"hello {user}".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = False
    request_queue_size = 128


class Quiet(WSGIRequestHandler):
    def log_message(self, *_args):
        pass


with make_server("127.0.0.1", 0, application, server_class=Server, handler_class=Quiet) as server:
    print(server.server_port, flush=True)
    threading.Thread(target=lambda: (sys.stdin.read(), server.shutdown()), daemon=True).start()
    server.serve_forever()
