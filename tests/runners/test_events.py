"""What agents say, as events."""

import pytest

from agent_orchestrator.runners.events import error_words


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ('{"error": {"message": "no credit", "code": 7}}', "no credit"),
        ("no credit", "no credit"),
        ('{"error": "no credit"}', '{"error": "no credit"}'),
        ('{"error": {"message": ""}}', '{"error": {"message": ""}}'),
        ('{"detail": "no credit"}', '{"detail": "no credit"}'),
        ("{cut", "{cut"),
        ("[]", "[]"),
        ("{" * 100_000, "{" * 100_000),
    ],
)
def test_the_message_of_a_model_servers_error_is_extracted(message: str, words: str) -> None:
    assert error_words(message) == words
