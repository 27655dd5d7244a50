"""The error of a copy."""


class CopyFailed(Exception):
    """A copy cannot be made.

    :param code: ``target_not_empty``, ``copy_differs`` or ``not_copied``.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
