"""What a person at a terminal is told when the sidecar is ready: what to try now."""

from collections.abc import Sequence
from typing import Final

from per_agent.settings import Settings, token_path

_EVENT: Final = """{"billing_id":"acme","user_id":"u-17","activity_type_id":"active-users"}"""


def greeting(settings: Settings, listeners: Sequence[str]) -> str:
    """A curl line for each of *listeners* that works as it stands. Shows no token: terminals are logged."""
    lines = [f"per-agent: listening on {' and '.join(listeners)}. Try it:"]
    for listener in listeners:
        if listener.startswith("unix:"):
            lines.append(f"  curl --unix-socket {listener[5:]} -d '{_EVENT}' http://localhost/v1/events")
        elif settings.sidecar.token is None:
            token = f'-H "Authorization: Bearer $(cat {token_path(settings)})"'
            lines.append(f"  curl {token} -d '{_EVENT}' {listener}/v1/events")
        else:
            lines.append(f"  curl -H \"Authorization: Bearer $TOKEN\" -d '{_EVENT}' {listener}/v1/events")
    lines.append("Then: per-agent report --last 1d. Ctrl-C stops it; what it took is kept.")
    return "\n".join(lines) + "\n"
