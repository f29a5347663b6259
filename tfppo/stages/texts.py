"""The texts of a run: packed for a language model, or cut into prompts."""

from tfppo.config import DataConfig
from tfppo.data.packing import PackedSequences, encode_documents, pack
from tfppo.data.prompts import PromptSet, encode_trajectories
from tfppo.data.sources import Example, load_examples
from tfppo.data.tokenizer import Tokenizer


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
    examples = load_texts(data, split)
    return pack(encode_documents(examples, tokenizer), length), sum(len(e.text.split()) for e in examples)


def load_prompts(data: DataConfig, split: str, tokenizer: Tokenizer, seed: int) -> PromptSet:
    """The prompts of a split. Raises: UserError where there is none, or one is too long."""
    trajectories = encode_trajectories(load_texts(data, split), tokenizer, data, seed)
    return PromptSet(trajectories, tokenizer.pad_id, 1 + data.max_prompt_tokens, seed)
