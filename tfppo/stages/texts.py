"""The texts of a run: packed for a language model, or cut into prompts."""

from tfppo.config import DataConfig
from tfppo.data.packing import PackedSequences, encode_documents, pack
from tfppo.data.prompts import PromptSet, encode_trajectories
from tfppo.data.sources import Example, load_examples
from tfppo.data.tokenizer import Tokenizer
from tfppo.errors import UserError


def load_texts(data: DataConfig, split: str) -> list[Example]:
    """The texts of a split. Raises: UserError where there is none."""
    return load_examples(
        data.source,
        split,
        text_feature=data.text_feature,
        prompt_feature=data.prompt_feature,
        data_dir=data.data_dir,
    )


def load_packed(data: DataConfig, split: str, tokenizer: Tokenizer, length: int) -> tuple[PackedSequences, int]:
    """The texts of a split as sequences of `length` tokens, and the number of words in them."""
    return pack_examples(load_texts(data, split), tokenizer, length)


def load_written(data: DataConfig, split: str, tokenizer: Tokenizer, length: int) -> tuple[PackedSequences, int] | None:
    """As `load_packed`, of those examples that have a text; None where there are prompts alone."""
    examples = [example for example in load_texts(data, split) if example.text.strip()]
    return pack_examples(examples, tokenizer, length) if examples else None


def pack_examples(examples: list[Example], tokenizer: Tokenizer, length: int) -> tuple[PackedSequences, int]:
    """Examples as sequences of `length` tokens, and the number of words in their texts."""
    return pack(encode_documents(examples, tokenizer), length), sum(len(e.text.split()) for e in examples)


def load_prompts(data: DataConfig, split: str, tokenizer: Tokenizer, seed: int) -> PromptSet:
    """The prompts of a split. Raises: UserError where there is none, or one is too long."""
    trajectories = encode_trajectories(load_texts(data, split), tokenizer, data, seed)
    return PromptSet(trajectories, tokenizer.pad_id, 1 + data.max_prompt_tokens, seed)


def load_held_out_prompts(data: DataConfig, tokenizer: Tokenizer, seed: int) -> PromptSet | None:
    """The prompts of the validation split; None, said in a line, where there are none: a run needs none to train."""
    try:
        return load_prompts(data, "validation", tokenizer, seed)
    except UserError as error:
        print(f"no evaluation during training: {error}", flush=True)
        return None
