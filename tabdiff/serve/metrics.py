"""What the endpoint counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384)


class Metrics:
    """Counters of one endpoint; their names are part of the interface."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter("tabdiff_requests", "Requests answered", ["path", "status"], registry=registry)
        self.seconds = Histogram(
            "tabdiff_request_seconds", "Time to answer", ["path"], buckets=_SECONDS, registry=registry
        )
        self.rows = Counter("tabdiff_rows", "Rows scored, drawn or filled", ["path"], registry=registry)
        self.flagged = Counter("tabdiff_flagged_rows", "Rows flagged as abnormal", registry=registry)
        self.batch = Histogram(
            "tabdiff_batch_rows", "Rows scored together in one call", buckets=_ROWS, registry=registry
        )
        self.waiting = Gauge("tabdiff_waiting_requests", "Requests that wait for the model", registry=registry)

    def text(self) -> bytes:
        """Prometheus text format."""
        return generate_latest(self._registry)
