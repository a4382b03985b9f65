"""Traces of messages across the queues, by OpenTelemetry: prompt, propose and verify in one.

Off unless OTEL_EXPORTER_OTLP_ENDPOINT says where a collector is; OpenTelemetry's other variables
count too. Wants the extra ppv[traces].
"""

import logging
import os
from typing import Any

from celery import signals

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"

logger = logging.getLogger(__name__)

_tracing = False  # in this process


def connect() -> None:
    signals.worker_process_init.connect(_start)  # threads that export outlive no fork


def about(run: str, batch: str) -> None:
    """What the task at hand is about."""
    if _tracing:
        from opentelemetry.trace import get_current_span

        get_current_span().set_attributes({"ppv.run": run, "ppv.batch": batch})


def _start(**_: object) -> None:
    global _tracing
    if not os.environ.get(ENDPOINT):
        return
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.celery import CeleryInstrumentor
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        logger.warning("no traces: %s is missing; pip install 'ppv[traces]'", error.name)
        return
    os.environ.setdefault("OTEL_SERVICE_NAME", "ppv")
    provider = TracerProvider(resource=Resource.create())
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    CeleryInstrumentor().instrument()
    _tracing = True

    def end(**_: Any) -> None:
        provider.shutdown()  # what is not sent yet

    signals.worker_process_shutdown.connect(end, weak=False)
