"""The texts of a run: packed for a language model, or cut into prompts."""

from collections.abc import Callable

from tfppo.config import Config, DataConfig
from tfppo.data.chat import ChatTemplate, choose_template
from tfppo.data.packing import PackedSequences, encode_documents, pack
from tfppo.data.prompts import PromptSet, encode_trajectories, padded_length
from tfppo.data.report import no_field
from tfppo.data.shapes import Example
from tfppo.data.sources import load_examples
from tfppo.data.tokenizer import Tokenizer
from tfppo.errors import UserError
from tfppo.rewards.columns import takes_column


def load_texts(
    data: DataConfig, split: str, kept: ChatTemplate | None = None, rewarded: Callable[[str], bool] = no_field
) -> list[Example]:
    """The texts of a split; chats are written by the template that is kept with the model, if there is one.

    Args: rewarded: whether a reward function takes a field, for what is printed.
    Raises: UserError where there is none, or data.chat_template names another template.
    """
    return load_examples(
        data.source,
        split,
        text_feature=data.text_feature,
        prompt_feature=data.prompt_feature,
        data_dir=data.data_dir,
        template=choose_template(data.chat_template, kept),
        rewarded=rewarded,
    )


def template_of(data: DataConfig, examples: list[Example], kept: ChatTemplate | None) -> ChatTemplate | None:
    """The template to keep with a model of these texts: the kept one, or that which wrote their chats, if any is."""
    chats = any(example.is_chat for example in examples)
    return choose_template(data.chat_template, kept) if chats else kept


def check_responses(data: DataConfig, examples: list[Example]) -> None:
    """Raises UserError where there is nothing to learn from: prompts, and no response to any of them."""
    if all(example.prompt is not None and not example.text.strip() for example in examples):
        raise UserError(
            f"data.source {data.source!r} has prompts and no responses; a language model learns from responses: give "
            "each prompt one, name their field by data.text_feature, or go to tfppo train-ppo with a language model"
        )


def load_packed(data: DataConfig, split: str, tokenizer: Tokenizer, length: int) -> tuple[PackedSequences, int]:
    """The texts of a split as sequences of `length` tokens, and the number of words in them."""
    return pack_examples(load_texts(data, split, tokenizer.chat_template), tokenizer, length)


def load_written(config: Config, split: str, tokenizer: Tokenizer, length: int) -> tuple[PackedSequences, int] | None:
    """As `load_packed`, of those examples that have a text; None where there are prompts alone.

    It is for a stage with rewards.
    """
    rewarded = takes_column(config.reward.functions)
    examples = load_texts(config.data, split, tokenizer.chat_template, rewarded)
    written = [example for example in examples if example.text.strip()]
    return pack_examples(written, tokenizer, length) if written else None


def pack_examples(examples: list[Example], tokenizer: Tokenizer, length: int) -> tuple[PackedSequences, int]:
    """Examples as sequences of `length` tokens, and the number of words in their texts."""
    return pack(encode_documents(examples, tokenizer), length), sum(len(e.text.split()) for e in examples)


def load_prompts(config: Config, split: str, tokenizer: Tokenizer, positions: int) -> PromptSet:
    """The prompts of a split, for a model of so many positions. A tokenizer without chat template gets that of chats.

    Raises: UserError where there is none, or one is too long and data.long_prompts refuses it.
    """
    data = config.data
    examples = load_texts(data, split, tokenizer.chat_template, takes_column(config.reward.functions))
    tokenizer.chat_template = template_of(data, examples, tokenizer.chat_template)
    room = positions - config.sampling.response_length - 1  # a start token comes before each prompt
    trajectories = encode_trajectories(examples, tokenizer, data, config.seed, room)
    return PromptSet(trajectories, tokenizer.pad_id, padded_length(trajectories, examples, data), config.seed)


def load_prompts_of_training(
    config: Config, tokenizer: Tokenizer, positions: int
) -> tuple[PromptSet, PromptSet | None]:
    """The prompts that PPO trains on, and those of the validation split for the evaluation in training.

    Both are padded to one length, that of the longer ones: sampling is compiled once for both. Instead of the second
    there is None where the evaluation is off, and, said in a line, where there are no such prompts: a run needs none to
    train.

    Raises: UserError as `load_prompts` does for the training split.
    """
    train = load_prompts(config, "train", tokenizer, positions)
    held_out = _load_held_out_prompts(config, tokenizer, positions)
    if held_out is None:
        return train, None
    length = max(train.length, held_out.length)
    return train.padded_to(length), held_out.padded_to(length)


def _load_held_out_prompts(config, tokenizer, positions):
    if not config.evaluation.every:
        return None
    try:
        return load_prompts(config, "validation", tokenizer, positions)
    except UserError as error:
        print(f"no evaluation during training: {error}", flush=True)
        return None
