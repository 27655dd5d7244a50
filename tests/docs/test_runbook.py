"""The runbook knows every issue that diagnosis does."""

import re
from typing import get_args

from pages import ROOT

from agent_orchestrator.operations.runs import IssueCode


def test_every_likely_issue_is_in_the_runbook() -> None:
    page = (ROOT / "docs" / "runbook.md").read_text()
    section = page.partition("### What diagnose says\n")[2].partition("<!-- made")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", section, re.MULTILINE)
    assert [code for code, _, _ in rows] == list(get_args(IssueCode))
    assert all(observed and what_to_do for _, observed, what_to_do in rows)
