"""The stages of an experiment, each from a validated Config and a run's folder.

WORKDIR/
    config.json          the validated configuration of the last training command
    lm/                  the best language model with its tokenizer
    reward_model/        the reward model, normalised, with its tokenizer
    policy/              the policy that PPO made, with the tokenizer; policy_average/ its moving average
    checkpoints/         of PPO; lm_checkpoints/ of the language model, reward_checkpoints/ of the reward model
    ppo.jsonl, ppo/      metrics of PPO, and the same for TensorBoard; likewise lm_training, reward_training
    evaluation.json      the last evaluation
    reward_over_kl.png   the picture of the PPO run
    export/1, 2, ...     SavedModels
"""

import dataclasses
import operator
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfppo.computation.devices import has_fast_bfloat16, resolve_jit_compile
from tfppo.computation.native.building import native_ops, resolve_computation, training_ops
from tfppo.config import Config
from tfppo.config.validation import validate_for_ppo, validate_trainable_blocks
from tfppo.data.packing import PackedSequences, encode_documents, pack
from tfppo.data.preferences import encode_preferences, load_preferences
from tfppo.data.prompts import PromptSet, encode_trajectories, pad_left
from tfppo.data.sources import load_examples
from tfppo.data.tokenizer import Tokenizer
from tfppo.errors import UserError
from tfppo.lm.likelihood import HeldOutLoss
from tfppo.lm.trainer import LmTrainer
from tfppo.models.folder import (
    check_model,
    copy_language_model,
    copy_policy,
    load_language_model,
    load_policy,
    load_reward_model,
    save_model,
)
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.models.reward_model import RewardModel
from tfppo.models.transformer import Transformer
from tfppo.ops.seeds import seed_for
from tfppo.ppo.charts import plot_reward_over_kl
from tfppo.ppo.evaluation import Evaluation, evaluate, write_evaluation
from tfppo.ppo.learner import Learner
from tfppo.ppo.rollout import RolloutCollector, Sampler
from tfppo.ppo.trainer import PpoTrainer
from tfppo.reward_model.normalization import normalize
from tfppo.reward_model.trainer import RewardTrainer
from tfppo.rewards.loading import MODEL_REWARDS, load_reward
from tfppo.rewards.scoring import TextReward, name_apart
from tfppo.serving import export
from tfppo.training.metrics import read_metrics
from tfppo.training.replicas import make_strategy


def open_workdir(workdir) -> Path:
    """Makes the run's folder. Raises: UserError where it cannot be written."""
    folder = Path(workdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--workdir {str(workdir)!r} cannot be written: {error.strerror}; choose another") from error
    return folder


def set_keras_seed(seed, purpose):
    """Makes the weights that Keras draws next a function of the root seed and their purpose alone."""
    keras.utils.set_random_seed(int(seed_for(seed, purpose)[0].astype(np.uint32)))


def check_tokenizer(setting, folder, its_tokenizer, tokenizer):
    """Raises UserError where the model in a folder has another tokenizer than the language model."""
    if its_tokenizer.digest() != tokenizer.digest():
        raise UserError(
            f"{setting}, but the model in {str(folder)!r} has another tokenizer than the language model, and scores "
            f"tokens; name one that was trained from this language model"
        )


class Experiment:
    """One configuration in one folder, on one set of devices."""

    def __init__(self, config: Config, workdir):
        self.config = config.validate()
        self.folder = open_workdir(workdir)
        self.strategy = make_strategy(config.num_replicas)
        keras.utils.set_random_seed(config.seed)

    def write_config(self):
        """Keeps the configuration of a training run as WORKDIR/config.json."""
        fresh = self.folder / "config.tmp"
        fresh.write_text(self.config.to_json())
        fresh.replace(self.folder / "config.json")

    def examples(self, split):
        """The texts of a split. Raises: UserError where there is none."""
        data = self.config.data
        return load_examples(
            data.source,
            split,
            text_feature=data.text_feature,
            prompt_feature=data.prompt_feature,
            data_dir=data.data_dir,
        )

    def packed(self, split, tokenizer, length) -> tuple[PackedSequences, int]:
        """The texts of a split as sequences of `length` tokens, and the number of words in them."""
        examples = self.examples(split)
        return pack(encode_documents(examples, tokenizer), length), sum(len(e.text.split()) for e in examples)

    def prompts(self, split, tokenizer) -> PromptSet:
        """The prompts of a split. Raises: UserError where there is none, or one is too long."""
        data, seed = self.config.data, self.config.seed
        trajectories = encode_trajectories(self.examples(split), tokenizer, data, seed)
        return PromptSet(trajectories, tokenizer.pad_id, 1 + data.max_prompt_tokens, seed)

    def rewards(self, tokenizer):
        """The reward functions that the configuration names, for the tokens of a tokenizer.

        Raises: UserError where there is none of a name, or a model that scores has another tokenizer or too few
        positions.
        """
        rewards = []
        for name in self.config.reward.functions:
            kind, folder = self.model_reward(name)
            if kind is None:
                rewards.append(TextReward(name.rpartition(":")[2], load_reward(name)))
                continue
            model, its_tokenizer = kind.load(folder)
            check_tokenizer(f"reward.functions has {name!r}", folder, its_tokenizer, tokenizer)
            self.check_positions(model, folder)
            rewards.append(kind.make(model, resolve_jit_compile(self.config.sampling.jit_compile, "float32")))
        name_apart(rewards)
        return rewards

    def model_reward(self, name):
        """The kind of reward that a model gives and the folder of that model; None, None where a function gives it."""
        kind, _, folder = name.partition(":")
        if kind not in MODEL_REWARDS:
            return None, None
        defaults = {"likelihood": self.language_model_folder(), "reward_model": self.folder / "reward_model"}
        return MODEL_REWARDS[kind], Path(folder) if folder else defaults[kind]

    def train_lm(self):
        """Trains a tokenizer and a language model on the texts; WORKDIR/lm holds the best one afterwards.

        Where the configuration names a language model, that one is trained on, with its tokenizer and its sizes.
        """
        config, dtype = self.config, self.config.lm.dtype
        if dtype == "auto":
            dtype = "mixed_bfloat16" if has_fast_bfloat16() else "float32"
        with self.strategy.scope():
            if config.language_model:
                model, tokenizer = load_language_model(config.language_model, dtype)
            else:
                texts = [f"{example.prompt or ''}{example.text}" for example in self.examples("train")]
                tokenizer = Tokenizer.train(texts, config.model.vocabulary_size)
                sizes = {**dataclasses.asdict(config.model), "vocabulary_size": tokenizer.vocabulary_size}
                keras.utils.set_random_seed(config.seed)  # preparing a dataset draws numbers too, the first time
                model = LanguageModel(**sizes, pad_id=tokenizer.pad_id, dtype=dtype)
        train, _ = self.packed("train", tokenizer, model.max_sequence_length)
        validation, num_words = self.packed("validation", tokenizer, model.max_sequence_length)
        trainer = LmTrainer(
            config.lm, config.seed, model, tokenizer, train, validation, num_words, self.strategy, self.folder
        )
        self.write_config()
        trainer.train()

    def train_reward_model(self):
        """Trains a reward model, from the language model, on comparisons; WORKDIR/reward_model holds it afterwards."""
        config, settings = self.config, self.config.reward_model
        preferences = load_preferences(settings.source)
        language_model, tokenizer = load_language_model(self.language_model_folder())
        responses = ["reward_model.max_response_tokens"]
        responses += ["sampling.response_length"] if settings.normalize == "samples" else []
        for response in responses:
            self.check_positions(
                language_model, self.language_model_folder(), "reward_model.max_prompt_tokens", response
            )
        train, validation = (
            encode_preferences(preferences[split], tokenizer, settings) for split in ("train", "validation")
        )
        set_keras_seed(config.seed, "reward_model")
        with self.strategy.scope():
            model = RewardModel.from_language_model(language_model)
        trainer = RewardTrainer(settings, config.seed, model, tokenizer, train, validation, self.strategy, self.folder)
        self.write_config()
        trainer.train()
        normalize(model, language_model, train, tokenizer, config)
        save_model(model, tokenizer, self.folder / "reward_model")

    def language_model_folder(self) -> Path:
        """The folder of the model that PPO and a reward model start from; it also is PPO's reference."""
        return Path(self.config.language_model) if self.config.language_model else self.folder / "lm"

    def check_ppo(self):
        """Raises UserError for what PPO would refuse, before anything else is trained for it."""
        validate_for_ppo(self.config)
        native_ops(self.config.sampling.native, self.config.ppo.dtype)  # builds them, or says why it can't
        training_ops(self.config.ppo, self.config.ppo.update_dtype)
        if self.config.language_model:
            check_model(self.config.language_model, "train_lm.py")
        elif not self.language_model_folder().exists():  # it is trained first, of these sizes
            validate_trainable_blocks(self.config.ppo.trainable_blocks, self.config.model.num_layers)
        for name in self.config.reward.functions:
            kind, folder = self.model_reward(name)
            if kind is None:
                load_reward(name)
            elif folder != self.folder / "lm":  # which the quickstart has yet to train
                check_model(folder, kind.made_by)
        if self.config.ppo.critic_folder():
            check_model(self.config.ppo.critic_folder(), "train_reward_model.py")

    def train_ppo(self):
        """Fine-tunes the language model with PPO; WORKDIR/policy holds the policy afterwards."""
        config, ppo = self.config, self.config.ppo
        self.check_ppo()
        with self.strategy.scope():
            ref_model, tokenizer = load_language_model(self.language_model_folder(), ppo.dtype)
            ref_model.trainable = False
            policy = self.new_policy(ref_model, tokenizer)
            average = copy_policy(policy) if ppo.ema_decay else None
        self.check_positions(ref_model, self.language_model_folder())
        rewards = self.rewards(tokenizer)
        computation = resolve_computation(ppo, config.sampling, ref_model.trunk.sizes["hidden_dim"])
        collector = RolloutCollector(
            policy,
            ref_model,
            config.sampling,
            config.reward,
            tokenizer=tokenizer,
            rewards=rewards,
            strategy=self.strategy,
            dtype=computation.rollout_dtype,
            native=computation.native,
        )
        learner = Learner(
            policy,
            ppo,
            config.reward,
            self.strategy,
            config.sampling.temperature,
            computation.update_dtype,
            lengths_vary=config.sampling.stop_at_eos or ppo.trajectories == "dataset",
            native=computation.native,
        )
        prompts = self.prompts("train", tokenizer)
        trainer = PpoTrainer(config, collector, learner, prompts, self.folder, average)
        self.write_config()
        trainer.train()
        save_model(policy, tokenizer, self.folder / "policy")
        if average is not None:
            save_model(average, tokenizer, self.folder / "policy_average")
        plot_reward_over_kl(read_metrics(self.folder / "ppo.jsonl"), self.folder / "reward_over_kl.png")

    def new_policy(self, language_model, tokenizer) -> Policy:
        """A policy over a copy of the language model, with the critic that the configuration asks for."""
        ppo = self.config.ppo
        actor = copy_language_model(language_model, ppo.dtype)
        seed = seed_for(self.config.seed, "value_head")
        policy = Policy(actor, ppo.critic == "separate", ppo.value_head == "mlp", seed)
        if ppo.critic_init == "scratch":
            set_keras_seed(self.config.seed, "critic")
            policy.critic.set_weights(Transformer.from_config(policy.critic.get_config()).get_weights())
        elif ppo.critic_folder():
            reward_model, its_tokenizer = load_reward_model(ppo.critic_init)
            check_tokenizer(f"ppo.critic_init is {ppo.critic_init!r}", ppo.critic_init, its_tokenizer, tokenizer)
            policy.copy_critic(reward_model)
        return policy

    def evaluate(self, model_folder) -> Evaluation:
        """Evaluates the model in a folder on held-out prompts, against the language model that PPO starts from.

        `text_perplexity` is the model's own, a token, on the held-out texts themselves.
        """
        config = self.config
        policy, tokenizer = load_policy(model_folder)
        ref_model, _ = load_language_model(self.language_model_folder())
        self.check_positions(ref_model, self.language_model_folder())
        evaluation = evaluate(
            policy,
            ref_model,
            self.prompts("test", tokenizer).sample(config.evaluation.num_prompts),
            config.sampling,
            tokenizer=tokenizer,
            rewards=self.rewards(tokenizer),
            reward=config.reward,
            strategy=self.strategy,
            seed=config.seed,
            batch_size=config.evaluation.batch_size,
        )
        texts = self.packed("test", tokenizer, ref_model.max_sequence_length)
        held_out = HeldOutLoss(policy.language_model, *texts, config.evaluation.batch_size)()
        evaluation.figures["text_perplexity"] = held_out["perplexity"]
        return evaluation

    def generate(self, model_folder, prompts: list[str]) -> list[str]:
        """One continuation a prompt, by the model in a folder (None: the policy, or the language model before PPO).

        Raises: UserError where there is no model, or a prompt is longer than the model has room for.
        """
        sampling = self.config.sampling
        if model_folder is None:
            policy_folder = self.folder / "policy"
            model_folder = policy_folder if policy_folder.exists() else self.language_model_folder()
        policy, tokenizer = load_policy(model_folder)
        rows = [[tokenizer.eos_id, *ids] for ids in tokenizer.encode_batch(prompts)]
        room = policy.language_model.max_sequence_length - sampling.response_length
        for prompt, row in zip(prompts, rows, strict=True):
            if len(row) > room:
                raise UserError(
                    f"the prompt {prompt!r:.120} has {len(row) - 1} tokens; beside sampling.response_length "
                    f"{sampling.response_length} the model has room for {room - 1}; shorten one of them"
                )
        batch = pad_left(rows, tokenizer.pad_id, max(map(len, rows)))
        sampler = Sampler(
            policy, sampling, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id, strategy=tf.distribute.get_strategy()
        )
        samples = sampler(batch, seed_for(self.config.seed, "generate"))
        return tokenizer.decode_batch(samples.response_ids.numpy())

    def write_evaluation(self, figures):
        """Keeps the figures of an evaluation as WORKDIR/evaluation.json."""
        write_evaluation(self.folder / "evaluation.json", figures)

    def export(self, model_folder) -> Path:
        """Exports the model in a folder as the next version under WORKDIR/export."""
        policy, tokenizer = load_policy(model_folder)
        path = export.export_policy(policy, tokenizer, self.config.sampling, self.folder / "export")
        logging.info("exported to %s", path)
        return path

    def check_positions(self, model, folder, prompt="data.max_prompt_tokens", response="sampling.response_length"):
        """Raises UserError where a prompt and a response, as long as two settings allow, exceed a model's positions."""
        prompt_tokens, response_tokens = (operator.attrgetter(name)(self.config) for name in (prompt, response))
        longest = 1 + prompt_tokens + response_tokens
        if longest > model.max_sequence_length:
            raise UserError(
                f"{response} is {response_tokens}: with a start token and {prompt} {prompt_tokens} that is {longest} "
                f"positions, and the model in {str(folder)!r} has {model.max_sequence_length}; lower one of them"
            )
