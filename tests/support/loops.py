"""On which event loops a test runs, where not on both."""

import pytest

ON_ONE_LOOP = pytest.mark.one_loop
"""Marks a test, a class or a file (``pytestmark``) that has nothing to find on a second event loop.

What must run on both: the contracts of stores, runners, hosts, clients and what a runner is given; and
code with concurrency of its own, as streams, waits, cancellation and scopes have. A test that only looks
at values, messages, sizes, a file or another program, by a way those tests take too, runs on one.
"""
