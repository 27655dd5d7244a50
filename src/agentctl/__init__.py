"""The command line of agentd. It uses only the HTTP API.

``main``, ``options``, ``fields``, ``rows`` and ``commands`` make commands of the table of operations.
``call``, ``settings``, ``connection``, ``ids`` and ``paging`` call the daemon. ``views``, ``questions``,
``diffs``, ``event_text`` and ``transcript`` say what people see, as blocks of ``document``. ``output``
shows these: as plain lines (``document``), on a terminal with rich (``console``), or as JSON. ``follow``
and ``live`` show a session while it works, and take answers by keys.
"""
