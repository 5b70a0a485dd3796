"""What /metrics shows, in a registry of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from accel import optional
from accel.serve.reply import Reply

BUCKETS_S = (*(base * 10.0**power for power in range(-4, 1) for base in (1, 2.5, 5)), 10.0)
"""Upper ends: 0.1 ms to 10 s, three a decade."""


class Metrics:
    """Counts and durations; safe to use from any thread.

    Args:
        running: tells how many requests have a place now.
        slots: how many may.
        engine: what answers, as labels of `accel_engine_info`.
    """

    def __init__(self, running: Callable[[], int], slots: int, engine: Mapping[str, str]) -> None:
        client = optional.require("prometheus_client", extra="serve")
        self.registry = client.CollectorRegistry()
        common = {"registry": self.registry}
        self._requests = client.Counter("accel_requests", "Requests that were answered.", ["endpoint", "code"], **common)
        self._seconds = client.Histogram(
            "accel_request_seconds", "From a request's head to the end of its answer.", ["endpoint"], buckets=BUCKETS_S, **common
        )
        self.inference = client.Histogram(
            "accel_inference_seconds",
            "The engine's call; for a picture with fitting and normalising, without decoding.",
            buckets=BUCKETS_S,
            **common,
        )
        self._rejected = client.Counter("accel_rejected", "Requests that were not let in (503).", ["reason"], **common)
        client.Gauge(
            "accel_requests_running", "Requests that have a place; one that timed out has it until its run ends.", **common
        ).set_function(running)
        client.Gauge("accel_requests_running_limit", "Places; nobody waits for one.", **common).set(slots)
        client.Info("accel_engine", "What answers.", **common).info(dict(engine))
        client.ProcessCollector(registry=self.registry)

    def answered(self, endpoint: str, code: int, seconds: float) -> None:
        self._requests.labels(endpoint, str(code)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def rejected(self, reason: str) -> None:
        self._rejected.labels(reason).inc()

    def reply(self, accept: str) -> Reply:
        """All of it in the text format that `accept` prefers."""
        exposition = optional.require("prometheus_client.exposition", extra="serve")
        encode, content_type = exposition.choose_encoder(accept)
        return Reply(200, encode(self.registry), content_type=content_type)
