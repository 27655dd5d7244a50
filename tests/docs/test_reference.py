"""The reference says what the code does."""

import re

import pytest
from reference import DOCS, PAGES, rendered

from agent_orchestrator.wire.openapi import openapi_document


@pytest.mark.parametrize("name", PAGES)
def test_the_made_parts_are_up_to_date(name: str) -> None:
    assert rendered(name) == (DOCS / name).read_text(), "run: python tests/docs/reference.py"


def test_every_call_has_an_example_with_its_answer() -> None:
    page = (DOCS / "api-contract.md").read_text()
    sections = dict(
        re.findall(r"^### `([A-Z]+ /.*?)`\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL)
    )
    described = {
        f"{method.upper()} {path}": told
        for path, methods in openapi_document("0")["paths"].items()
        for method, told in methods.items()
    }
    assert sections.keys() == described.keys()
    for call, told in described.items():
        section = sections[call]
        assert re.search(r"(Scope|Token): ", section), call
        (example, *_) = re.findall(r"^```text\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
        method, path = call.split()
        parts = [re.escape(part) for part in re.split(r"{\w+}", path)]
        asked, _, answered = example.partition("\n\n")
        assert re.match(rf"{method} {r'[^/ ?]+'.join(parts)}(\?\S+)?$", asked, re.MULTILINE), call
        if method in ("POST", "PUT", "PATCH"):
            # A body, but where there is nothing to say.
            assert "{" in asked or not told["requestBody"].get("required"), call
        if call != "GET /stream":  # the line of the status is not shown there
            status = answered.split(maxsplit=1)[0]
            assert status in told["responses"], call
            assert int(status) < 300, call
        assert len(answered.splitlines()) > 1, call
