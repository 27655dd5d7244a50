"""What is known of a thread that a process has loaded."""

from attrs import frozen


@frozen
class LoadedThread:
    """A thread that the process has loaded, with what its turns have been told last.

    :param cwd: where it works.
    :param untrusted_directories: the directories whose configuration it was loaded without.
    :param effort: the reasoning effort its last turn was given; None is codex's own.
    :param default_model: what ``model`` None means, where codex has said it.
    :param has_tools: whether it was begun with the orchestration tools.
    :param is_single_run: whether it was loaded with what is a single run's, so that codex must let
        go of it when that ends.
    :param is_confirmed: whether codex has taken it so; not while it loads it, nor where nobody waited
        for its answer, nor once it refused a turn.
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
