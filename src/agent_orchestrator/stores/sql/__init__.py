"""What the stores on SQL databases share: rows of the model, statements, and the commits in groups.

The statements are in SQLite's SQL. PostgreSQL's store translates each of them once
(:mod:`agent_orchestrator.stores.postgres.translation`). Expressions that a translation would not
reach are fields of a :class:`~agent_orchestrator.stores.sql.dialect.Dialect`.
"""
