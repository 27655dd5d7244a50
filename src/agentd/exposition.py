"""Counters, gauges and histograms in Prometheus' text format, version 0.0.4."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal

from attrs import define, field

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

Labels = tuple[str, ...]
"""The values of a family's labels, in the order of its label names."""


@define
class MetricFamily:
    """A metric with its series: one for each combination of label values."""

    name: str
    doc: str
    kind: Literal["counter", "gauge"]
    labels: tuple[str, ...] = ()
    values: dict[Labels, float] = field(factory=dict)

    def add(self, *labels: str, amount: float = 1.0) -> None:
        """Add to the series with these label values."""
        self.values[labels] = self.values.get(labels, 0.0) + amount

    def lines(self) -> Iterator[str]:
        """Yield the lines of this metric."""
        yield from _head(self.name, self.doc, self.kind)
        for labels, value in self.values.items():
            yield _sample(self.name, zip(self.labels, labels, strict=True), value)


@define
class _Series:
    counts: list[int]
    total: float = 0.0


@define
class Histogram:
    """A histogram of values.

    :param bounds: upper bounds of the buckets, ascending; infinity is added.
    """

    name: str
    doc: str
    bounds: Sequence[float]
    labels: tuple[str, ...] = ()
    _series: dict[Labels, _Series] = field(factory=dict, init=False)

    def observe(self, value: float, *labels: str) -> None:
        """Count a value. Not thread-safe."""
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = _Series([0] * (len(self.bounds) + 1))
        series.counts[bisect_left(self.bounds, value)] += 1
        series.total += value

    def lines(self) -> Iterator[str]:
        """Yield the lines of this metric."""
        yield from _head(self.name, self.doc, "histogram")
        for values, series in tuple(self._series.items()):
            labels = tuple(zip(self.labels, values, strict=True))
            cumulative = 0
            for bound, count in zip((*self.bounds, "+Inf"), tuple(series.counts), strict=True):
                cumulative += count
                bucket_labels = (*labels, ("le", bound if isinstance(bound, str) else f"{bound:g}"))
                yield _sample(f"{self.name}_bucket", bucket_labels, cumulative)
            yield _sample(f"{self.name}_sum", labels, series.total)
            yield _sample(f"{self.name}_count", labels, cumulative)


def gauge(name: str, doc: str, value: float) -> MetricFamily:
    """Return a gauge without labels."""
    return MetricFamily(name, doc, "gauge", (), {(): value})


def counter(name: str, doc: str, value: float) -> MetricFamily:
    """Return a counter without labels whose value is counted elsewhere."""
    return MetricFamily(name, doc, "counter", (), {(): value})


def gauges(
    name: str, doc: str, labels: tuple[str, ...], values: Mapping[Labels, float]
) -> MetricFamily:
    """Return a gauge with labels."""
    return MetricFamily(name, doc, "gauge", labels, dict(values))


def render(families: Iterable[MetricFamily | Histogram]) -> str:
    """Return the document with these metrics."""
    return "".join(f"{line}\n" for family in families for line in family.lines())


def _head(name: str, doc: str, kind: str) -> Iterator[str]:
    yield f"# HELP {name} {doc}"
    yield f"# TYPE {name} {kind}"


def _sample(name: str, labels: Iterable[tuple[str, str]], value: float) -> str:
    label_text = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels)
    number = f"{int(value)}" if value == int(value) else repr(float(value))
    return f"{name}{{{label_text}}} {number}" if label_text else f"{name} {number}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
