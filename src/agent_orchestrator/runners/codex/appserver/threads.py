"""The state of a thread that a process has loaded."""

from attrs import frozen


@frozen
class LoadedThread:
    """A thread that a process has loaded, with the last settings of its turns.

    :param cwd: its working directory.
    :param untrusted_directories: the directories whose configuration it was loaded without.
    :param effort: the reasoning effort of its last turn; None means codex's own.
    :param default_model: the model that ``model=None`` means, if codex has reported it.
    :param has_tools: whether it began with the orchestration tools.
    :param is_single_run: whether it was loaded with settings of a single run, so that it must be
        unloaded at the end of that run.
    :param is_confirmed: whether codex has accepted these settings. False while it loads the thread,
        if the wait for its answer was canceled, and after it refused a turn.
    """

    cwd: str
    untrusted_directories: tuple[str, ...]
    model: str | None
    approval_policy: str
    sandbox: str
    effort: str | None = None
    default_model: str | None = None
    has_tools: bool = False
    is_single_run: bool = False
    is_confirmed: bool = True
