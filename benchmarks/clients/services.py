"""Peers that deliver in the background to a service of their own; each gets the sink for it."""

import time
from collections.abc import Callable
from typing import Any

from benchmarks.clients.client import ROOM, Client, Place


def _posthog(place: Place) -> Client:
    import posthog

    options: dict[str, Any] = {"max_queue_size": ROOM} if place.roomy else {}
    client = posthog.Posthog("key", host=place.url, **options)

    def call(billing: str, user: str, kind: str) -> object:
        return client.capture(kind, distinct_id=user, properties={"billing": billing})

    return Client(call, client.flush, lambda answer: answer is not None)


def _segment(place: Place) -> Client:
    from segment.analytics import Client as Segment

    options: dict[str, Any] = {"max_queue_size": ROOM} if place.roomy else {}
    client = Segment("key", host=place.url, **options)

    def call(billing: str, user: str, kind: str) -> object:
        return client.track(user, kind, {"billing": billing})

    return Client(call, client.flush, lambda answer: bool(answer[0]))  # type: ignore[index]


def _opentelemetry(place: Place) -> Client:
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

    options: dict[str, Any] = {"max_queue_size": ROOM} if place.roomy else {}
    provider = LoggerProvider()
    exporter = OTLPLogExporter(endpoint=f"{place.url}/v1/logs")
    provider.add_log_record_processor(BatchLogRecordProcessor(exporter, **options))
    logger = provider.get_logger("benchmarks")

    def call(billing: str, user: str, kind: str) -> object:
        return logger.emit(timestamp=time.time_ns(), body=kind, attributes={"billing": billing, "user": user})

    return Client(call, provider.force_flush)


def _sentry(place: Place) -> Client:
    import sentry_sdk

    sentry_sdk.init(dsn=f"http://key@127.0.0.1:{place.port}/1")

    def call(billing: str, user: str, kind: str) -> object:
        return sentry_sdk.capture_event({"message": kind, "user": {"id": user}, "tags": {"billing": billing}})

    return Client(call, lambda: sentry_sdk.flush(60))


def _datadog(place: Place) -> Client:
    from datadog.dogstatsd import DogStatsd

    client = DogStatsd(host="127.0.0.1", port=place.port)

    def call(billing: str, user: str, kind: str) -> object:
        return client.increment(kind, tags=[f"billing:{billing}", f"user:{user}"])

    return Client(call, client.flush)


def _amberflo(place: Place) -> Client:
    from metering.ingest import create_ingest_client
    from metering.session.ingest_session import IngestSession

    IngestSession.root_url = place.url
    client = create_ingest_client(api_key="key", **({"max_queue_size": ROOM} if place.roomy else {}))

    def call(billing: str, user: str, kind: str) -> object:
        return client.meter(kind, 1, time.time_ns() // 1_000_000, billing, {"user": user})

    return Client(call, client.flush, bool)


MAKERS: dict[str, Callable[[Place], Client]] = {
    "posthog": _posthog,
    "segment": _segment,
    "opentelemetry logs": _opentelemetry,
    "sentry": _sentry,
    "amberflo": _amberflo,
    "datadog statsd": _datadog,
}
