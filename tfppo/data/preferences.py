"""Comparisons for reward models: a prompt, its chosen response, and its rejected responses."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tfppo.config import RewardModelConfig
from tfppo.data.chat import ASSISTANT, CHATML, ChatTemplate, Message, is_chat, read_messages
from tfppo.data.prompts import pad_left, pad_right
from tfppo.data.records import checked_text, find_files, read_records
from tfppo.data.report import LoadReport, counted, tell
from tfppo.data.splits import cut_splits
from tfppo.data.tokenizer import Tokenizer
from tfppo.errors import UserError

_FIELDS = ("prompt", "chosen", "rejected")
# What opens the assistant's turn in transcripts that are texts.
_TURNS = (
    "\n\nAssistant:",
    "<|im_start|>assistant\n",
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "<|assistant|>\n",
    "[/INST]",
    "### Response:\n",
)


@dataclass(frozen=True, slots=True)
class Preference:
    """One comparison as texts."""

    prompt: str
    responses: tuple[str, ...]  # the chosen one first
    place: str = field(default="", compare=False)  # where its record stands, for messages


class Comparisons(NamedTuple):
    """N comparisons of K responses each, the chosen one first; each response ends with EOS."""

    prompt_ids: np.ndarray  # [N, P] int32, padded on the left
    prompt_mask: np.ndarray  # [N, P] int32
    response_ids: np.ndarray  # [N, K, R] int32, padded on the right
    response_mask: np.ndarray  # [N, K, R] float32


def load_preferences(source: str, template: ChatTemplate = CHATML) -> dict[str, list[Preference]]:
    """The comparisons of files by split, which a line counts; all comparisons of a prompt are in the same split.

    source: a file, a folder or a pattern of files of records (`tfppo/data/records.py`) with `chosen` and `rejected`,
    each a text or the messages of a chat; `rejected` may be a list of these, of one length in the whole source. With
    `prompt`, a text or messages, they are responses. Without, or where all are chats that do not begin with the
    assistant, they are whole transcripts; their common beginning is the prompt.

    Raises: UserError for a file that is missing or malformed, or has a split without comparisons.
    """
    if not source or source.startswith("tfds:"):
        raise UserError(f"reward_model.source is {source!r}; name files of records with {', '.join(_FIELDS)}")
    report = LoadReport(source)
    preferences: list[Preference] = []
    for path in find_files(source).known:
        for where, record in read_records(path):
            preference, taken = _Comparison(record, where, template).read()
            report.add(record, taken)
            expected = len((preferences or [preference])[0].responses) - 1
            if len(preference.responses) - 1 != expected:
                raise UserError(
                    f"{where}: field 'rejected' has {len(preference.responses) - 1} texts, and that of the first "
                    f"record {expected}: give every record as many."
                )
            if preference.responses[0] in preference.responses[1:]:
                report.leave_out(where, "comparisons whose chosen response is also a rejected one")
            else:
                preferences.append(preference)
    tell(report.line())
    split_by_prompt = cut_splits([preference.prompt for preference in preferences])
    splits: dict[str, list[Preference]] = {"train": [], "validation": [], "test": []}
    for preference in preferences:
        splits[split_by_prompt[preference.prompt]].append(preference)
    empty = [split for split, members in splits.items() if not members]
    if empty:
        raise UserError(
            f"reward_model.source {source!r} has no comparisons for split {empty[0]!r}: give it at least 3 different "
            f"prompts."
        )
    return splits


class _Comparison:
    """One record on its way to a Preference."""

    def __init__(self, record: Mapping[str, object], where: str, template: ChatTemplate):
        self.where, self.template = where, template
        present = sorted(name for name, value in record.items() if value is not None)
        for name in _FIELDS[1:]:
            if record.get(name) is None:
                raise UserError(f"{where}: no field {name!r}; the fields are {present}: write {', '.join(_FIELDS)}.")
        self.prompt, chosen, rejected = (record.get(name) for name in _FIELDS)
        if rejected == []:
            raise UserError(f"{where}: field 'rejected' is []: give at least one text.")
        others = rejected if isinstance(rejected, list) and not is_chat(rejected) else [rejected]
        self.named = [(chosen, "chosen"), *((value, "rejected") for value in others)]

    def read(self) -> tuple[Preference, list[tuple[str, str]]]:
        """The comparison, and which field was taken for what."""
        chats = is_chat(self.prompt) or any(is_chat(value) for value, _ in self.named)
        whole = self.prompt is None
        if chats:
            head, answers = self._messages()
            whole = whole or all(answer[0].role != ASSISTANT for answer in answers)
            prompt, responses = self._split_chats(answers if whole else [[*head, *answer] for answer in answers])
        else:
            responses = [checked_text(value, name, self.where) for value, name in self.named]
            if not whole:
                prompt = checked_text(self.prompt, "prompt", self.where)
            else:
                prompt, responses = self._split_texts(responses)
        taken = [("prompt and chosen", "chosen")] if whole else [("prompt", "prompt"), ("chosen", "chosen")]
        return Preference(prompt, tuple(responses), self.where), [*taken, ("rejected", "rejected")]

    def _messages(self):
        """The messages of the prompt, and those of each response."""

        def messages(value, name, role):
            read = (
                read_messages(value, name, self.where)
                if is_chat(value)
                else [Message(role, checked_text(value, name, self.where))]
            )
            if not read:
                raise UserError(f"{self.where}: field {name!r} is []: give it messages.")
            return read

        head = [] if self.prompt is None else messages(self.prompt, "prompt", "user")
        return head, [messages(value, name, ASSISTANT) for value, name in self.named]

    def _split_chats(self, chats):
        shared = os.path.commonprefix(chats)
        at = min(len(shared), *(len(chat) - 1 for chat in chats))  # each has a message of its own
        if at == 0 or len({chat[at].role for chat in chats}) > 1:
            self._refuse_beginnings()
        try:
            pairs = [self.template.split(chat, at) for chat in chats]
        except UserError as error:
            raise UserError(f"{self.where}: {error}") from error
        return pairs[0][0], [response for _, response in pairs]

    def _split_texts(self, texts: Sequence[str]):
        at = _end_of_prompt(os.path.commonprefix(texts))
        if at == 0:
            self._refuse_beginnings()
        return texts[0][:at], [text[at:] for text in texts]

    def _refuse_beginnings(self):
        raise UserError(
            f"{self.where}: no field 'prompt', and chosen and rejected have no common beginning that could be it: "
            f"write {', '.join(_FIELDS)}."
        )


def _end_of_prompt(shared: str) -> int:
    """Where the prompt ends in the common beginning of transcripts: before the assistant's turn, or a word's start."""
    turn = max(shared.rfind(opening) + len(opening) if opening in shared else 0 for opening in _TURNS)
    blank = re.search(r"\s\S*$", shared)
    return turn or (blank.start() if blank else 0)


def encode_preferences(preferences: list[Preference], tokenizer: Tokenizer, config: RewardModelConfig) -> Comparisons:
    """Comparisons as tokens: EOS as start token before each prompt, and EOS at the end of each response.

    Comparisons with a longer prompt or response than the configuration allows are left out and counted in a line. They
    are not truncated, since people compared the whole responses. Raises: UserError where none is left.
    """
    prompts = tokenizer.encode_batch([preference.prompt for preference in preferences])
    size = len(preferences[0].responses)
    texts = tokenizer.encode_batch([text for preference in preferences for text in preference.responses])
    responses = [[[*ids, tokenizer.eos_id] for ids in texts[i : i + size]] for i in range(0, len(texts), size)]
    kept, long = [], []
    for preference, prompt, group in zip(preferences, prompts, responses, strict=True):
        if len(prompt) <= config.max_prompt_tokens and max(map(len, group)) <= config.max_response_tokens:
            kept.append((prompt, group))
        else:
            long.append(preference.place)
    limits = (
        f"reward_model.max_prompt_tokens {config.max_prompt_tokens} or reward_model.max_response_tokens "
        f"{config.max_response_tokens}"
    )
    if not kept:
        raise UserError(
            f"reward_model.source {config.source!r}: each of the {len(preferences)} comparisons of a split is longer "
            f"than {limits}; raise them, or shorten the texts"
        )
    if long:
        what = f"comparisons longer than {limits}"
        tell(f"data: {config.source}: left out: {counted(long, what)}")
    rows = [[tokenizer.eos_id, *prompt] for prompt, _ in kept]
    ids, mask = pad_left(rows, tokenizer.pad_id, max(map(len, rows)))
    rows = [response for _, group in kept for response in group]
    response_ids, response_mask = (
        array.reshape(len(kept), size, -1) for array in pad_right(rows, tokenizer.pad_id, max(map(len, rows)))
    )
    return Comparisons(ids.numpy(), mask.numpy(), response_ids, response_mask)
