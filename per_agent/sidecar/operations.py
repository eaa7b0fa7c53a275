"""For operators: is it alive, is it ready, how is each destination doing, do the books balance."""

import os
import time
from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from per_agent.agent.overview import Overview
from per_agent.errors import SpoolError
from per_agent.event import iso
from per_agent.sidecar.problems import Problem
from per_agent.sidecar.service import Service
from per_agent.version import version

_encode = msgspec.json.encode


def routes(service: Service) -> list[BaseRoute]:
    """`/healthz`, `/readyz`, `/v1/status` and `/v1/books`."""
    operations = Operations(service)
    return [
        Route("/healthz", operations.health),
        Route("/readyz", operations.readiness),
        Route("/v1/status", operations.status),
        Route("/v1/books", operations.books),
    ]


class Operations:
    """The answers. None of them changes anything."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def health(self, _: Request) -> Response:
        """200: the event loop answers. It says nothing of disks or upstreams."""
        return as_json({"status": "ok"})

    async def readiness(self, _: Request) -> Response:
        """200 when events are accepted and stored, else 503 with the reasons."""
        reasons = self._reasons()
        if not reasons:
            return as_json({"status": "ready"})
        return as_json({"status": "unready", "reasons": reasons}, 503)

    async def status(self, _: Request) -> Response:
        """The document of `per-agent status --json`, and this sidecar."""
        seen = await self._look()
        return as_json({**seen.as_dict(time.time()), "sidecar": self._self()})

    async def books(self, _: Request) -> Response:
        """The document of `per-agent books --json`. 200 also where they do not balance: then it says so."""
        seen = await self._look()
        return as_json(seen.books_as_dict())

    async def _look(self) -> Overview:
        try:
            async with self._service.reading:
                return await run_in_threadpool(self._service.agent.overview)
        except SpoolError as error:
            raise Problem(503, str(error), headers={"retry-after": "5"}) from None

    def _reasons(self) -> list[str]:
        """Why no events should come here, a sentence each."""
        trouble = self._service.agent.unready
        return [
            *(["the sidecar is stopping"] if self._service.draining else []),
            *([] if trouble is None else [trouble]),
        ]

    def _self(self) -> dict[str, Any]:
        reasons = self._reasons()
        return {
            "version": version(),
            "pid": os.getpid(),
            "started_at": iso(self._service.started_at),
            "listeners": self._service.listeners,
            "ready": not reasons,
            "trouble": "; ".join(reasons) or None,
            "journal_trouble": self._service.agent.status()["journal"]["trouble"],
        }


def as_json(document: Any, status: int = 200) -> Response:
    """*document* as an answer, its numbers exact."""
    return Response(_encode(document), status, media_type="application/json")
