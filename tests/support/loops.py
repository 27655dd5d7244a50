"""On which event loops a test runs, where not on both."""

import pytest

ON_ONE_LOOP = pytest.mark.one_loop
"""Marks a test, a class or a file (``pytestmark``) that has nothing to find on a second event loop.

These run on both loops: the contract suites of stores, runners, hosts, clients and the runner's context, and
tests of streams, waits, cancellation and scopes. A test runs on one loop if it only checks values, messages,
sizes, a file or another program, and the tests above already use the same calls.
"""
