"""The figures of `/metrics`, in Prometheus' text format. Never a prompt, a name or a key in a label."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ucotron_ray.serving.exchange import Usage
from ucotron_ray.serving.gate import Gate

SECONDS = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 25.0, 30.0)
"""Bounds of the histograms. The Ucotron server gives up at 30 s."""


class Metrics:
    """One registry for one front: figures of two fronts in one process do not mix."""

    def __init__(self, gate: Gate) -> None:
        self._registry = CollectorRegistry()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"ucotron_serving_{name}", text, labels, registry=self._registry)

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(f"ucotron_serving_{name}", text, buckets=SECONDS, registry=self._registry)

        self.requests = counter("requests", "Chat requests by how they ended", ("outcome",))
        self.tokens = counter("tokens", "Tokens read and written", ("kind",))
        self.answers = counter("answers", "Answers by decoding and by whether the server could parse them", _ANSWER)
        self.seconds = histogram("request_seconds", "From a request's arrival to the end of its reply")
        self.first_seconds = histogram("first_piece_seconds", "From a request's arrival to its first piece of text")
        self.queued = histogram("queued_seconds", "From a question's arrival at a replica to its first pass")
        self.batch = Histogram(
            "ucotron_serving_batch_rows",
            "Rows decoded together, as each answer saw them",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self._registry,
        )
        for name, text, value in (
            ("inside", "Requests that run or wait", lambda: gate.inside),
            ("capacity", "Requests that may be inside", lambda: gate.slots + gate.queue),
            ("draining", "1 once no further request is taken", lambda: int(gate.draining)),
        ):
            Gauge(f"ucotron_serving_{name}", text, registry=self._registry).set_function(value)
        self._model = Gauge("ucotron_serving_model", "1 for what was seen last", ("model",), registry=self._registry)

    def answered(self, usage: Usage, model: str, *, parsed: bool) -> None:
        """Count one answer."""
        self.tokens.labels("prompt").inc(usage.prompt_tokens)
        self.tokens.labels("completion").inc(usage.completion_tokens)
        self.answers.labels("constrained" if usage.constrained else "free", str(parsed).lower()).inc()
        self.queued.observe(usage.queued_seconds)
        self.batch.observe(usage.batch_rows)
        self._model.clear()
        self._model.labels(model).set(1)

    def text(self) -> bytes:
        """All figures in the text format."""
        return generate_latest(self._registry)


_ANSWER = ("decoding", "parsed")
