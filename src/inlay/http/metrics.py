"""What Prometheus is told: requests, tokens, queue, cache and adapters, by adapter where that says something."""

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
"""The bounds of histograms of times."""

NO_ADAPTER = "none"


class Metrics:
    """The figures of one server, in a registry of their own."""

    def __init__(self, gauges: dict[str, tuple[str, Callable[[], float]]]):
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("inlay_requests", "Requests that were answered.", ["path", "status", "adapter"], **own)
        self.prompt_tokens = Counter("inlay_prompt_tokens", "Tokens of prompts.", ["adapter"], **own)
        self.answer_tokens = Counter("inlay_answer_tokens", "Tokens of answers.", ["adapter"], **own)
        self.seconds = Histogram(
            "inlay_request_seconds", "From a request to its whole answer.", ["path"], buckets=SECONDS, **own
        )
        self.first_token = Histogram(
            "inlay_first_token_seconds", "From a request to its first token.", buckets=SECONDS, **own
        )
        for name, (what, value) in gauges.items():
            Gauge(name, what, **own).set_function(value)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self.registry)
