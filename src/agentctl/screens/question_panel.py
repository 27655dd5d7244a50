"""The panel with a request and the keys that answer it."""

from collections.abc import Mapping
from typing import Any, Final

from textual import events
from textual._time import get_time
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, Static

from agent_orchestrator.domain.model import Request
from agentctl.diffs import objects
from agentctl.event_text import text_of
from agentctl.output import compact
from agentctl.questions import Choice, answer_names, choices_of, question_blocks
from agentctl.screens.text import content_of, line

SEEN_S: Final = 0.4
"""Seconds that a request must have been shown before a key answers it."""


class QuestionPanel(Vertical, can_focus=True):
    """Shows one request. Ignores keys that were typed before it was shown."""

    class Decided(Message):
        """The user decided a request.

        :param values: the arguments of the call that resolves it.
        """

        def __init__(self, request: Request, values: Mapping[str, Any]) -> None:
            super().__init__()
            self.request = request
            self.values = values

    def __init__(self) -> None:
        super().__init__(id="question")
        self.request: Request | None = None
        self._choice: Choice | None = None
        """The choice for which the user types a text."""
        self._open_questions: list[tuple[str, Mapping[str, Any]]] = []
        """Those of several questions that have no answer yet, with the names of their answers."""
        self._answers: dict[str, str] = {}
        """By these names."""
        self._shown_at = 0.0
        self._is_read = False
        self._note = ""
        self._body = self._question = self._keys = Content()

    def compose(self) -> ComposeResult:
        with VerticalScroll(can_focus=False):
            yield Static(markup=False, id="question-text")
        yield Static(markup=False, id="question-keys")
        yield Input(id="question-words")

    def on_mount(self) -> None:
        self.show(None, "")

    def show(self, request: Request | None, path: str, more: str = "") -> None:
        """Show a request.

        :param path: the titles of its session and the session's ancestors.
        :param more: text to append to the heading.
        """
        self.display = request is not None
        is_other = request is None or self.request is None or request.id != self.request.id
        self.request = request
        if request is None:
            return
        if is_other:
            self._body = content_of(question_blocks(request, folded=False), is_whole=True)
        head = Content.styled(f"? {line(path)} asks{more}", "bold $warning")
        self._question = Content("\n").join([head, self._body])
        self.query_one("#question-text", Static).update(self._question)
        if is_other:
            self._note, self._is_read, self._shown_at = "", False, float("inf")
            self._show_input(None)
            self.query_one(VerticalScroll).scroll_home(animate=False)
            self.call_after_refresh(self._mark_shown, request.id)
            self._show_keys()
        else:
            self._note_what_is_read()

    def _mark_shown(self, request_id: str) -> None:
        if self.request is not None and self.request.id == request_id:
            self._shown_at = get_time()
            self._note_what_is_read()

    def _note_what_is_read(self) -> None:
        """Check whether the end of the question is in view: then the user may approve it."""
        text = self.query_one(VerticalScroll)
        # The layout may not be up to date.
        rows = self._question.get_height({}, max(text.scrollable_content_region.width, 1))
        in_view = min(text.size.height, self._max_question_rows())
        self._is_read = self._is_read or 0 < rows <= text.scroll_offset.y + in_view
        self._show_keys()

    def _max_question_rows(self) -> int:
        """Return the maximum number of rows for the question that leaves the keys in view."""
        size = self.screen.size
        keys = self._keys.get_height({}, max(size.width - 6, 8))
        return max(size.height * 6 // 10 - 3 - keys, 3)

    def _show_keys(self) -> None:
        choices = choices_of(self.request) if self.request is not None else []
        keys = [(one.key, line(one.label, 200)) for one in choices]
        parts = [Content.assemble((key, "bold $warning"), f" {label}") for key, label in keys]
        more = [] if self._is_read else [Content.styled("space: more", "bold")]
        more += [Content.styled(self._note, "$error")] if self._note else []
        rows = [Content("   ").join(parts), *([Content("   ").join(more)] if more else [])]
        self._keys = Content("\n").join(rows)
        self.query_one("#question-keys", Static).update(self._keys)
        self.query_one(VerticalScroll).styles.max_height = self._max_question_rows()

    def on_resize(self) -> None:
        if self.request is not None:
            self.call_after_refresh(self._note_what_is_read)

    def _show_input(self, choice: Choice | None, prompt: str = "") -> None:
        """Show the input for the text of a choice. With None, hide it."""
        text, self._choice = self.query_one(Input), choice
        text.display = choice is not None
        text.value = ""
        if choice is not None:
            text.placeholder = f"{prompt or choice.label}: enter sends, escape cancels"
            text.focus()
        elif self.has_focus_within:
            self.focus()

    def on_key(self, event: events.Key) -> None:
        if event.key == "escape" and self._choice is not None:
            self._show_input(None)
            event.stop()
        elif self._choice is None and self.apply_key(event):
            event.stop()

    def apply_key(self, event: events.Key) -> bool:
        """Answer or scroll by a key. Return False if the key has no meaning here."""
        request = self.request
        if request is None:
            return False
        if event.key in ("space", "pagedown", "pageup"):
            self.page(-1 if event.key == "pageup" else 1)
            return True
        choice = next((one for one in choices_of(request) if one.key == event.character), None)
        if choice is None:
            return False
        grants, self._note = choice.decision != "deny", ""
        if event.time < self._shown_at + SEEN_S:
            self._note = "read it first"
        elif grants and not self._is_read:
            self._note = "press space to read the rest first"
        elif choice.needs_yes is not None:
            allowed = line(choice.needs_yes or choice.label, 200)
            self._show_input(choice, f"this allows {allowed}; type yes to allow it")
        elif choice.needs_text:
            self._ask_for_text(request, choice)
        else:
            self._decide(choice)
        self._show_keys()
        return True

    def _ask_for_text(self, request: Request, choice: Choice) -> None:
        """Ask for the text of a choice, or for an answer to each of several questions."""
        questions = objects((request.detail or {}).get("questions"))
        named = [*zip(answer_names(questions), questions, strict=True)]
        self._open_questions, self._answers = named if len(named) > 1 else [], {}
        is_several = bool(self._open_questions) and choice.decision == "answer"
        self._show_input(choice, self._next_question() if is_several else "")

    def _next_question(self) -> str:
        return line(text_of(self._open_questions[0][1]), 200)

    def _decide(self, choice: Choice, text: str | None = None) -> None:
        values = {"decision": choice.decision, "option": choice.option, "text": text}
        if self.request is not None:
            self.post_message(self.Decided(self.request, values))

    def page(self, step: int) -> None:
        """Scroll the text by a page, with one line of overlap."""
        text = self.query_one(VerticalScroll)
        rows = step * max(text.size.height - 1, 1)
        text.scroll_relative(y=rows, animate=False, on_complete=self._note_what_is_read)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        choice, text = self._choice, event.value.strip()
        if choice is None or not text:
            return
        if choice.needs_yes is not None:
            self._show_input(None)
            if text == "yes":
                self._decide(choice)
        elif self._open_questions and choice.decision == "answer":
            self._answers[self._open_questions.pop(0)[0]] = text
            if self._open_questions:
                self._show_input(choice, self._next_question())
                return
            self._show_input(None)
            self._decide(choice, compact(self._answers))
        else:
            self._show_input(None)
            self._decide(choice, event.value)
