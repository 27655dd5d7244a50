"""The error of copying a store."""


class CopyFailed(Exception):
    """A store cannot be copied.

    :param code: ``target_not_empty``, ``copy_differs`` or ``not_copied``.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
