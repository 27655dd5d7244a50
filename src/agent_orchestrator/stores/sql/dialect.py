"""Expressions that each database writes in its own way."""

from attrs import frozen


@frozen
class Dialect:
    """Expressions of the shared statements. ``?1`` is the number of characters to cut to.

    :param threads: the threads of a row of ``sessions``, as a JSON object of ids by provider.
    :param result: the result of a row of ``runs``; for a long one, its size in bytes instead.
    :param result_size: the bytes of the result of a row of ``runs``; 0 if there is none.
    :param cut_result: at least the first characters of the result of a row of ``runs``.
    :param cut_error: at least the first characters of its error message.
    :param event_data: the data of a row of ``events e``; for long data, its size in bytes instead.
    """

    threads: str
    result: str
    result_size: str
    cut_result: str
    cut_error: str
    event_data: str
