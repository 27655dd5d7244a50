"""The common parts of the stores on SQL databases: rows of the model, statements, and group commit.

The statements are in SQLite's SQL. PostgreSQL's store translates each of them once
(:mod:`agent_orchestrator.stores.postgres.translation`). Expressions that cannot be
translated are fields of a :class:`~agent_orchestrator.stores.sql.dialect.Dialect`.
"""
