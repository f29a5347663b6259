"""Chat as text: a template that says what stands around the messages of each role, kept with the model."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeGuard

from tfppo.data.records import checked_text
from tfppo.errors import UserError

CONTENT = "{content}"
ASSISTANT = "assistant"

# The names that files give to roles, where they differ from those of templates.
_ROLES = {"human": "user", "gpt": ASSISTANT, "bot": ASSISTANT, "chatgpt": ASSISTANT, "model": ASSISTANT}
_ROLE_FIELDS, _CONTENT_FIELDS = ("role", "from"), ("content", "value")


class Message(NamedTuple):
    """One message of a chat."""

    role: str
    content: str


@dataclass(frozen=True)
class ChatTemplate:
    """The text of each role's messages, with {content} for the content. Equal where they write the same text.

    Raises: UserError where a role's text has no {content}, or there is none for the assistant.
    """

    name: str = field(compare=False)
    roles: Mapping[str, str]

    def __post_init__(self):
        if ASSISTANT not in self.roles:
            raise UserError(f"chat template {self.name!r} has no role {ASSISTANT!r}, only {sorted(self.roles)}: add it")
        for role, text in self.roles.items():
            if not isinstance(text, str) or text.count(CONTENT) != 1:
                raise UserError(f"chat template {self.name!r}: role {role!r} is {text!r}: write {CONTENT} in it, once")

    def split(self, messages: Sequence[Message], at: int) -> tuple[str, str]:
        """A chat as (prompt, response), where the response begins with the content of messages[at].

        The prompt ends with what stands before that content, and the response without what stands after the last
        one's: there EOS ends it. Blanks at the end of the prompt go to the response, as tokens begin with them.
        Raises: UserError for a role without a text.
        """
        pieces = [self._around(message) for message in messages]
        opening = pieces[at][0]
        prompt = "".join("".join(piece) for piece in pieces[:at]) + opening
        response = "".join("".join(piece) for piece in pieces[at:])[len(opening) :].removesuffix(pieces[-1][2])
        kept = prompt.rstrip(" ")
        return kept, prompt[len(kept) :] + response

    def prompt(self, messages: Sequence[Message]) -> str:
        """A chat as the prompt of the assistant's next message. Raises: UserError for a role without a text."""
        return self.split([*messages, Message(ASSISTANT, "")], len(messages))[0]

    def save(self, path: str | os.PathLike) -> None:
        """Writes the template as JSON."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"name": self.name, "roles": dict(self.roles)}, file, indent=2)

    def _around(self, message):
        """A message as what stands before its content, the content, and what stands after it."""
        if message.role not in self.roles:
            raise UserError(f"chat template {self.name!r} has no role {message.role!r}, only {', '.join(self.roles)}")
        start, _, end = self.roles[message.role].partition(CONTENT)
        return start, message.content, end


def load_template(path: str | os.PathLike) -> ChatTemplate:
    """Reads what `save` wrote, or a file of the same form: a name, and a text for each role.

    Raises: UserError where the file cannot be read or is not of that form.
    """
    try:
        with open(os.path.expanduser(path), encoding="utf-8") as file:
            found = json.load(file)
        name, roles = str(found.get("name", os.fspath(path))), dict(found["roles"])
    except OSError as error:
        raise UserError(f"chat template {str(path)!r} cannot be read ({error.strerror}): check the path") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f'chat template {str(path)!r} is not of the form {{"roles": {{"user": "...{CONTENT}...", '
            f'"assistant": "...{CONTENT}..."}}}}'
        ) from error
    return ChatTemplate(name, roles)


def _chatml(role):
    return f"<|im_start|>{role}\n{CONTENT}<|im_end|>\n"


BUILT_IN = {
    "chatml": {role: _chatml(role) for role in ("system", "user", ASSISTANT, "tool")},
    "hh": {"system": CONTENT, "user": f"\n\nHuman: {CONTENT}", ASSISTANT: f"\n\nAssistant: {CONTENT}"},
    "alpaca": {
        "system": f"{CONTENT}\n\n",
        "user": f"### Instruction:\n{CONTENT}\n\n",
        ASSISTANT: f"### Response:\n{CONTENT}\n\n",
    },
}
CHATML = ChatTemplate("chatml", BUILT_IN["chatml"])


def choose_template(setting: str, kept: ChatTemplate | None) -> ChatTemplate:
    """The template that a run writes chats with.

    Args:
        setting: `data.chat_template`: "", the name of a built-in template, or the path of a .json file.
        kept: the template that the run's model was trained with, if any. It decides.

    Raises: UserError where the setting names another template than the model's.
    """
    if not setting:
        return kept or CHATML
    named = ChatTemplate(setting, BUILT_IN[setting]) if setting in BUILT_IN else load_template(setting)
    if kept is not None and named != kept:
        raise UserError(
            f"data.chat_template is {setting!r}, but the model was trained with {kept.name!r}, which is kept with it; "
            f"leave the setting empty, or train a model with {setting!r}"
        )
    return named


def is_chat(value: object) -> TypeGuard[list[dict]]:
    """Whether a field holds the messages of a chat: a list of objects."""
    return isinstance(value, list) and all(isinstance(message, dict) for message in value)


def read_messages(value: object, name: str, where: str) -> list[Message]:
    """The messages of a field: objects with role and content, or with from and value as ShareGPT writes them.

    Raises: UserError, with the place, for anything else.
    """
    if not is_chat(value):
        raise UserError(f"{where}: field {name!r} is {value!r:.60}: it must be a list of messages.")
    messages = []
    for message in value:
        role, content = (
            next((message[field] for field in fields if message.get(field) is not None), None)
            for fields in (_ROLE_FIELDS, _CONTENT_FIELDS)
        )
        if not isinstance(role, str):
            raise UserError(f"{where}: field {name!r} has a message without role, {message!r:.60}.")
        if content is None:
            raise UserError(f"{where}: field {name!r} has a message without content, {message!r:.60}.")
        role = _ROLES.get(role.lower(), role.lower())
        messages.append(Message(role, checked_text(content, name, where)))
    return messages
