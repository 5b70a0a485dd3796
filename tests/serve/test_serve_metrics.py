"""/metrics, read with Prometheus' own parser."""

from __future__ import annotations

from typing import Any

import pytest
from serve_http import Running, request, scripted, serving

for _package in ("starlette", "uvicorn", "httptools"):
    pytest.importorskip(_package, reason="the extra serve is not installed")
parser = pytest.importorskip("prometheus_client.parser", reason="the extra serve is not installed")
openmetrics = pytest.importorskip("prometheus_client.openmetrics.parser")


def samples(text: str, parse: Any = parser.text_string_to_metric_families) -> dict[str, dict[tuple[str, ...], float]]:
    """Name → the values of its labels, sorted by their names → value."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in parse(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels[key] for key in sorted(sample.labels))] = sample.value
    return found


def test_every_request_is_counted_by_endpoint_and_code_and_timed() -> None:
    with serving(scripted(), slots=3) as running:
        for _ in range(4):
            assert running.infer(request()).status == 200
        assert running.infer({}).status == 400
        assert running.get("/v2/models/other").status == 404
        assert running.get("/nowhere/at/all").status == 404
        running.service.gate.drain()
        assert running.infer(request()).status == 503
        found = samples(running.get("/metrics").body.decode())
    assert found["accel_requests_total"] == {
        ("200", "infer"): 4,
        ("400", "infer"): 1,
        ("503", "infer"): 1,
        ("404", "model"): 1,
        ("404", "other"): 1,
    }
    assert found["accel_request_seconds_count"][("infer",)] == 6
    assert 0 < found["accel_request_seconds_sum"][("infer",)] < 30
    assert found["accel_inference_seconds_count"][()] == 4
    assert found["accel_rejected_total"] == {("draining",): 1}
    assert found["accel_requests_running"][()] == 0
    assert found["accel_requests_running_limit"][()] == 3
    assert found["accel_engine_info"] == {("cpu", "net", "fake:fp32", "0.0"): 1}
    assert found["process_resident_memory_bytes"][()] > 1e6


def test_a_bucket_is_cumulative_and_the_last_has_all(adding: Running) -> None:
    adding.infer(request())
    buckets = samples(adding.get("/metrics").body.decode())["accel_inference_seconds_bucket"]
    values = [value for _, value in sorted(buckets.items(), key=lambda item: float(item[0][0]))]
    assert values == sorted(values)
    assert values[-1] == samples(adding.get("/metrics").body.decode())["accel_inference_seconds_count"][()]


def test_who_asks_for_openmetrics_gets_it(adding: Running) -> None:
    answer = adding.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
    assert "accel_engine_info" in samples(answer.body.decode(), openmetrics.text_string_to_metric_families)
    assert adding.get("/metrics").headers["Content-Type"].startswith("text/plain")


def test_two_servers_in_one_process_count_for_themselves(adding: Running) -> None:
    with serving(scripted(), slots=1) as running:
        assert "accel_requests_total" not in samples(running.get("/metrics").body.decode())
