"""The stage that continues prompts."""

from pathlib import Path

import tensorflow as tf

from tfppo.config import Config
from tfppo.data.chat import Message, choose_template
from tfppo.data.prompts import pad_left
from tfppo.errors import UserError
from tfppo.models.folder import load_policy, model_exists
from tfppo.ops.seeds import seed_for
from tfppo.ppo.sampler import Sampler
from tfppo.stages.engines import engines_that_sample
from tfppo.stages.workdir import language_model_folder, model_folder


def generate(config: Config, folder: Path, model: Path | str | None, prompts: list[str]) -> list[str]:
    """One continuation a prompt, by a model that is named as in `model_folder`.

    Without a name it is the policy, or the language model before PPO.

    Where the model was trained on chats, a prompt is what the user says, and the continuation is the answer.

    Raises: UserError where there is no model, or a prompt is longer than the model has room for.
    """
    sampling = config.sampling.for_readers()
    if model is not None or model_exists(folder / "policy"):
        policy, tokenizer = load_policy(model_folder(folder, model))
    else:
        policy, tokenizer = load_policy(language_model_folder(config, folder))
    rows = [[tokenizer.eos_id, *ids] for ids in tokenizer.encode_batch(_written(config, tokenizer, prompts))]
    room = policy.language_model.max_sequence_length - sampling.response_length
    for prompt, row in zip(prompts, rows, strict=True):
        if len(row) > room:
            raise UserError(
                f"the prompt {prompt!r:.120} has {len(row) - 1} tokens; beside sampling.response_length "
                f"{sampling.response_length} the model has room for {room - 1}; shorten one of them"
            )
    sampler = Sampler(
        policy,
        sampling,
        engines_that_sample(sampling, policy.language_model),
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        strategy=tf.distribute.get_strategy(),
    )
    batch = pad_left(rows, tokenizer.pad_id, max(map(len, rows)))
    samples = sampler(batch, seed_for(config.seed, "generate"))
    return tokenizer.decode_batch(samples.response_ids.numpy())


def _written(config, tokenizer, prompts):
    """The prompts as the model was trained to read them."""
    kept = tokenizer.chat_template
    template = choose_template(config.data.chat_template, kept)
    return prompts if kept is None else [template.prompt([Message("user", prompt)]) for prompt in prompts]
