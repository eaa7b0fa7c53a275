"""The yardstick of the sidecar: an application that does nothing, on uvicorn with the sidecar's settings.

python -m benchmarks.empty SOCKET      listens there and on a free port, which it prints
"""

import asyncio
import socket
import sys
from typing import Any

import uvloop
from uvicorn import Config, Server

_HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"2")]


async def application(_: Any, __: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": b"{}"})


async def _serve(path: str) -> None:
    port, local = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
    local.bind(path)
    config = Config(
        application,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
    )
    local.listen(1024)
    print(port.getsockname()[1], flush=True)
    await Server(config).serve(sockets=[port, local])


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(sys.argv[1]))
