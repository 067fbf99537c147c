"""What machines and people on call see of the service: metrics, one log line a request, spans.

Labels are few and fixed: a path or a value that a client made up never becomes one, so nothing that
was sent can be read here.
"""

import json
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Tracer

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
"""Set by `bentoml serve`: workers then count into files that each of them can add up."""

_TWENTIETHS = [n / 20 for n in range(1, 20)]
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
_TRACEPARENT = re.compile(
    r"[0-9a-f]{2}-(?=[0-9]*[a-f])[0-9a-f]{32}-(?=[0-9]*[a-f])[0-9a-f]{16}-[0-9a-f]{2}"
)
_access = logging.getLogger("health_predict.access")


class Metrics:
    """The service's Prometheus metrics, for one model.

    Args:
        facts: what is known of the model.
    """

    def __init__(self, facts: Mapping[str, Any]) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._registry = CollectorRegistry()
        self._version = facts["version"]
        self._predictions = Counter(
            "health_predict_predictions",
            "Encounters scored.",
            ["model_version", "risk_band"],
            registry=self._registry,
        )
        # Bands are known beforehand: a rate is then right from the first prediction on.
        self._by_band = {
            band: self._predictions.labels(self._version, band) for band in facts["risk_bands"]
        }
        self._scores = Histogram(
            "health_predict_risk_score",
            "Predicted probability of readmission.",
            ["model_version"],
            buckets=_TWENTIETHS,
            registry=self._registry,
        ).labels(self._version)
        self._unseen = Counter(
            "health_predict_unseen_category",
            "Encounters with a level that was rare or unknown where the model learned.",
            ["field"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "health_predict_request_duration_seconds",
            "Seconds from a request's first byte to its answer's last.",
            ["route", "status"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._durations: dict[tuple[str, int], Any] = {}
        known = ("name", "version", "run_id", "family", "git_revision")
        Gauge(
            "health_predict_model_info",
            "The model that answers.",
            known,
            multiprocess_mode="livemax",
            registry=self._registry,
        ).labels(*(str(facts.get(key, "")) for key in known)).set(1)

    def predicted(
        self, band: str, probability: float, warnings: Sequence[Mapping[str, str]]
    ) -> None:
        """Counts one scored encounter."""
        self._by_band[band].inc()
        self._scores.observe(probability)
        for warning in warnings:
            self._unseen.labels(warning["field"]).inc()

    def requested(self, route: str, status: int, seconds: float) -> None:
        """Counts one answered request."""
        duration = self._durations.get((route, status))
        if duration is None:
            duration = self._durations[route, status] = self._seconds.labels(route, str(status))
        duration.observe(seconds)

    def exposition(self) -> tuple[bytes, str]:
        """Returns what Prometheus scrapes, and its media type."""
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector

        registry = self._registry
        if os.environ.get(MULTIPROCESS):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        return generate_latest(registry), CONTENT_TYPE_LATEST

    def close(self) -> None:
        """Takes this worker's gauges out of what the others expose."""
        if os.environ.get(MULTIPROCESS):
            from prometheus_client.multiprocess import mark_process_dead

            mark_process_dead(os.getpid())


def log_to_stdout() -> None:
    """Lets the access log write to standard output, a JSON line a request."""
    if not _access.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        _access.addHandler(handler)
    _access.propagate = False
    _access.setLevel(logging.INFO)


def log_access(
    request_id: str, method: str, route: str, status: int, seconds: float, version: str | None
) -> None:
    """Logs one answered request; nothing of its body, address or query."""
    _access.info(
        json.dumps(
            {
                "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "request_id": request_id,
                "method": method,
                "route": route,
                "status": status,
                "ms": round(1000 * seconds, 3),
                "model_version": version,
            }
        )
    )


def tracer_of_environment(version: str) -> "Tracer | None":
    """Returns a tracer that exports by OTLP over HTTP, None where no collector is named.

    OpenTelemetry's own variables configure it: `OTEL_EXPORTER_OTLP_ENDPOINT`,
    `OTEL_TRACES_SAMPLER`, `OTEL_RESOURCE_ATTRIBUTES` and so on.
    """
    named = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if not any(os.environ.get(name) for name in named):
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": "readmission", "service.version": version})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider.get_tracer("health_predict")


def trace_of(traceparent: str | None) -> "Context | None":
    """Returns the trace that a request says it belongs to, None if it is to begin one.

    The ids are taken that tracing makes, and nothing else: `tracestate` and `baggage` hold what a
    client likes, and an id of digits alone may be a person's number. One in two thousand of those
    made by machine has no letter either, and begins a trace.
    """
    if traceparent is None or not _TRACEPARENT.fullmatch(traceparent):
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent})
