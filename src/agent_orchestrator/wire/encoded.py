"""JSON objects that are decoded only when they are read."""

from collections.abc import Iterator, Mapping
from typing import Any

from agent_orchestrator.wire import long_json


class Encoded(Mapping[str, Any]):
    """A JSON object in its encoded form.

    Long agent output is stored and forwarded in this form. Decoding and encoding it at each step would
    take most of the time and several times the memory.

    :param text: a JSON object in UTF-8, as :mod:`agent_orchestrator.wire.strict_json` writes it.
    """

    __slots__ = ("__weakref__", "_value", "text")

    def __init__(self, text: bytes) -> None:
        self.text = text
        self._value: dict[str, Any] | None = None

    @property
    def value(self) -> dict[str, Any]:
        """The decoded object. The first access decodes it in slices, which can take long."""
        if self._value is None:
            self._value = long_json.loads(self.text)
        return self._value

    def __getitem__(self, name: str) -> Any:
        return self.value[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.value)

    def __len__(self) -> int:
        return len(self.value)

    def __repr__(self) -> str:
        return (
            repr(self._value) if self._value is not None else f"<{len(self.text):,} bytes of JSON>"
        )
