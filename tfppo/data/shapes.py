"""Recognises what a record holds: a text, a prompt and its response, an instruction, or a chat."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tfppo.data.chat import ASSISTANT, ChatTemplate, Message, is_chat, read_messages
from tfppo.data.records import checked_text
from tfppo.errors import UserError, did_you_mean

TEXT, PROMPT = "text", "prompt"
DEFAULT_FIELDS = (TEXT, PROMPT)
RESPONSES = ("response", "completion", "output", "answer")
CHATS = ("messages", "conversations")
INSTRUCTION, INPUT, SYSTEM = "instruction", "input", "system"


@dataclass(frozen=True, slots=True)
class Example:
    """One text. With a prompt, `text` is the response to it, empty when there are prompts only."""

    text: str = ""
    prompt: str | None = None
    # Every field of its record, for reward functions. Two examples are equal by their texts.
    columns: Mapping[str, object] = field(default_factory=dict, compare=False)
    place: str = field(default="", compare=False)  # where its record stands, for messages
    is_chat: bool = field(default=False, compare=False)  # whether a chat template wrote it


class Reading(NamedTuple):
    """What a record was taken for."""

    example: Example
    taken: tuple[tuple[str, str], ...]  # (what for, name of the field)
    has_response: bool | None  # None: a text, which needs none


def recognise(record: Mapping[str, object], where: str, names: Sequence[str], template: ChatTemplate) -> Reading:
    """Takes the fields of a record for a text, or for a prompt and its response.

    A field that is None is not there. The first of these that fits is taken:

    prompt and a response (one of RESPONSES, or text); instruction with input and a response, as a chat of one turn;
    a chat under one of CHATS, whose last message is the response if it is the assistant's; text; a prompt alone.

    Args:
        where: the place of the record, for messages.
        names: text_feature and prompt_feature. One that is no default must be there, and is taken alone. A text may be
            None.
        template: writes chats as text.

    Raises: UserError where nothing fits, or a field does not hold what it must.
    """
    shape = _Shape(record, where, names, template)
    # An empty text counts as blank; without its prompt, a response would be taken for a whole text.
    for name, default, there in zip(names, DEFAULT_FIELDS, (record.keys(), shape.present), strict=True):
        if name not in there and name != default:
            raise UserError(
                f"{where}: no field {name!r}, which --config.data.{default}_feature names; the fields are "
                f"{sorted(there)}{did_you_mean(name, there)}"
            )
    if shape.prompt and shape.response:
        return shape.pair()
    if tuple(names) == DEFAULT_FIELDS and shape.chat:
        return shape.conversation(shape.chat, "chat")
    if names[0] in shape.present:
        return shape.plain()
    if shape.prompt:
        return shape.prompt_alone()
    if names[0] != TEXT:  # it is there, and empty
        return Reading(Example("", columns=record, place=where), ((TEXT, names[0]),), None)
    raise UserError(
        f"{where}: neither {names[0]!r} nor {names[1]!r} is there; the fields are {sorted(shape.present)}: rename "
        f"one, or set text_feature or prompt_feature."
    )


class _Shape:
    """A record, and which of its fields may be prompt, response and chat; None where there is none."""

    def __init__(self, record, where, names, template):
        self.record, self.where, self.template = record, where, template
        self.present = {name for name, value in record.items() if value is not None}
        self.prompt = self._first((PROMPT, INSTRUCTION) if names[1] == PROMPT else (names[1],))
        self.response = self._first((*RESPONSES, TEXT) if names[0] == TEXT else (names[0],))
        self.chat, self.text = self._first(CHATS), names[0]

    def _first(self, names):
        return next((name for name in names if name in self.present), None)

    def pair(self):
        value = self.record[self.response]
        if self.prompt != INSTRUCTION and not is_chat(self.record[self.prompt]) and not is_chat(value):
            text = checked_text(_written(value), self.response, self.where)
            prompt = checked_text(self.record[self.prompt], self.prompt, self.where)
            return self._reading(text, prompt, [(PROMPT, self.prompt), ("response", self.response)])
        messages, taken = self._asked()
        answer = (
            read_messages(value, self.response, self.where)
            if is_chat(value)
            else [Message(ASSISTANT, checked_text(_written(value), self.response, self.where))]
        )
        taken.append(("response", self.response))
        return self._split([*messages, *answer], len(messages), taken)

    def prompt_alone(self):
        value = self.record[self.prompt]
        if self.prompt != INSTRUCTION and not is_chat(value):
            return self._reading("", checked_text(value, self.prompt, self.where), [(PROMPT, self.prompt)], False)
        if self.prompt != INSTRUCTION:
            return self.conversation(self.prompt, PROMPT)
        messages, taken = self._asked()
        return self._split([*messages, Message(ASSISTANT, "")], len(messages), taken, False)

    def plain(self):
        value = self.record[self.text]
        if is_chat(value):
            return self.conversation(self.text, "chat")
        text = checked_text(value, self.text, self.where)
        return Reading(Example(text, None, self.record, self.where), ((TEXT, self.text),), None)

    def conversation(self, name, role):
        """A whole chat. It is answered where the assistant has the last word."""
        messages, taken = self._with_system(read_messages(self.record[name], name, self.where), [(role, name)])
        answered = bool(messages) and messages[-1].role == ASSISTANT
        if not messages:  # left out as blank
            return self._reading("", "", taken, False)
        messages = messages if answered else [*messages, Message(ASSISTANT, "")]
        return self._split(messages, len(messages) - 1, taken, answered)

    def _asked(self):
        """The messages before the response, and the fields that they are from."""
        value = self.record[self.prompt]
        if is_chat(value):
            return read_messages(value, self.prompt, self.where), [(PROMPT, self.prompt)]
        asked, taken = checked_text(value, self.prompt, self.where), [(PROMPT, self.prompt)]
        if self.prompt == INSTRUCTION and INPUT in self.present:
            more = checked_text(self.record[INPUT], INPUT, self.where)
            asked, taken = f"{asked}\n{more}" if more.strip() else asked, [*taken, (PROMPT, INPUT)]
        return self._with_system([Message("user", asked)], taken)

    def _with_system(self, messages, taken):
        text = self.record.get(SYSTEM)
        if isinstance(text, str) and text.strip() and messages and messages[0].role != SYSTEM:
            return [Message(SYSTEM, checked_text(text, SYSTEM, self.where)), *messages], [*taken, (SYSTEM, SYSTEM)]
        return messages, taken

    def _split(self, messages, at, taken, has_response=True):
        try:
            prompt, text = self.template.split(messages, at)
        except UserError as error:
            raise UserError(f"{self.where}: {error}") from error
        return self._reading(text if has_response else "", prompt, taken, has_response, is_chat=True)

    def _reading(self, text, prompt, taken, has_response=True, is_chat=False):
        example = Example(text, prompt, self.record, self.where, is_chat)
        return Reading(example, tuple(taken), has_response)


def _written(value):
    """A response that is a number, as the answers of sums are, as a text; a reward still gets the number."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
