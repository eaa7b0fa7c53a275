"""An upstream for the service: Per's wire form over TLS, and the name server that knows where it is."""

import http.server
import json
import socket
import ssl
import subprocess
import sysconfig
import threading
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

NAME = "upstream.test"
PORT = 8443
URL = f"https://{NAME}:{PORT}"


class Upstream:
    """Answers while it is begun; notes the users and the credentials that came. `silence` lets it answer no more."""

    def __init__(self) -> None:
        self.users: list[str] = []
        self.authorizations: set[str] = set()
        self.asked = 0
        self._silent = threading.Event()
        self._released = threading.Event()
        self._server: http.server.ThreadingHTTPServer | None = None

    def begin(self) -> None:
        upstream = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                upstream._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler)
        self._server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*_certificate())
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def end(self) -> None:
        """Connections are refused from now on."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    def silence(self) -> None:
        """Take requests and never answer."""
        self._silent.set()

    def speak(self) -> None:
        self._silent.clear()
        self._released.set()

    def _answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        self.asked += 1
        if self._silent.is_set():
            self._released.wait()
            handler.close_connection = True
            return
        self.authorizations.add(handler.headers["authorization"])
        self.users += parse_qs(urlsplit(handler.path).query)["userId"]
        body = json.dumps({"ok": True, "result": {"transactionId": "t"}}).encode()
        handler.send_response(200)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)


def _certificate(folder: Path = Path("/run/upstream")) -> tuple[Path, Path]:
    """A certificate for the name, which those who trust certifi's authorities trust from now on."""
    made = folder / "certificate.pem", folder / "key.pem"
    if folder.is_dir():
        return made
    folder.mkdir(mode=0o700)
    key = ("-newkey", "rsa:2048", "-nodes", "-keyout", made[1])
    name = ("-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}")
    subprocess.run(
        ["openssl", "req", "-x509", "-days", "2", *key, *name, "-out", made[0]],
        check=True,
        capture_output=True,
    )
    with Path(sysconfig.get_path("purelib"), "certifi/cacert.pem").open("a") as trusted:
        trusted.write("\n" + made[0].read_text())
    return made


def serve_names() -> None:
    """A name server for this machine: every name is here."""
    asked = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    asked.bind(("127.0.0.1", 53))
    Path("/etc/resolv.conf").write_text("nameserver 127.0.0.1\n")

    def answer() -> None:
        while True:
            query, client = asked.recvfrom(512)
            end = query.index(b"\0", 12) + 5
            wants_ipv4 = query[end - 4 : end - 2] == b"\0\1"
            header = query[:2] + b"\x81\x80\0\1" + (b"\0\1" if wants_ipv4 else b"\0\0") + b"\0\0\0\0"
            record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\x7f\0\0\1" if wants_ipv4 else b""
            asked.sendto(header + query[12:end] + record, client)

    threading.Thread(target=answer, daemon=True).start()
