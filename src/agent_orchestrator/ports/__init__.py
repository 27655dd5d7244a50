"""Protocols between the packages: stores, runners, observers and transports.

:mod:`agent_orchestrator.testing` has a contract suite for the authors of each.
"""
