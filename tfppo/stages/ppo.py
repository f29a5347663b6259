"""The stage that fine-tunes a language model with PPO."""

import dataclasses
from pathlib import Path

import tensorflow as tf

from tfppo.cluster import chief_writes
from tfppo.computation.choice import choose_computation
from tfppo.computation.computation import Computation
from tfppo.computation.devices import has_gpu
from tfppo.computation.modes import describe_devices
from tfppo.config import Config, PpoConfig
from tfppo.config.resuming import PPO
from tfppo.config.validation import validate_for_ppo, validate_prompt_positions, validate_trainable_blocks
from tfppo.data.tokenizer import Tokenizer
from tfppo.models.folder import (
    check_model,
    copy_language_model,
    copy_policy,
    language_model_sizes,
    load_language_model,
    load_reward_model,
    model_exists,
    save_model,
)
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.models.transformer import Transformer
from tfppo.ops.seeds import seed_for
from tfppo.ppo.assembly import assemble
from tfppo.ppo.charts import plot_reward_over_kl
from tfppo.ppo.trainer import PpoTrainer
from tfppo.stages.checks import check_tokenizer
from tfppo.stages.history import SettingsHistory
from tfppo.stages.rewards import check_rewards, load_rewards
from tfppo.stages.texts import load_prompts_of_training
from tfppo.stages.workdir import language_model_folder
from tfppo.training.metrics import read_metrics
from tfppo.training.seeding import set_keras_seed
from tfppo.training.tensorboard import picture_values, replace_summaries
from tfppo.training.workers import workers_of


def check_ppo(config: Config, folder: Path) -> None:
    """Raises UserError for what PPO would refuse, before anything else is trained for it."""
    config = config.with_ends()
    SettingsHistory(config, folder, PPO)
    model_folder = language_model_folder(config, folder)
    if config.language_model:
        check_model(config.language_model, "tfppo train-lm")
    known = language_model_sizes(model_folder)
    sizes = known or dataclasses.asdict(config.model)  # of a model yet to be trained
    if known or not model_exists(model_folder):
        # Before what is wrong only together with another setting.
        validate_trainable_blocks(config.ppo.trainable_blocks, sizes["num_layers"])
    validate_for_ppo(config)
    choose_computation(config.ppo, config.sampling, width=sizes["hidden_dim"], architecture=Transformer.architecture)
    check_rewards(config, folder, "train", *["validation"] * bool(config.evaluation.every))
    critic_folder = config.ppo.critic_folder()
    if critic_folder:
        check_model(critic_folder, "tfppo train-reward-model")


def train_ppo(config: Config, folder: Path, strategy: tf.distribute.Strategy) -> None:
    """Fine-tunes the language model with PPO; WORKDIR/policy holds the policy afterwards."""
    workers = workers_of(strategy)
    workers.barrier()  # what the chief has written is there
    config = config.with_ends()
    ppo, model_folder = config.ppo, language_model_folder(config, folder)
    check_ppo(config, folder)
    history = SettingsHistory(config, folder, PPO)
    with strategy.scope():
        ref_model, tokenizer = load_language_model(model_folder, ppo.dtype)
        ref_model.trainable = False
        policy = new_policy(ppo, config.seed, ref_model, tokenizer)
        average = copy_policy(policy) if ppo.ema_decay else None
    validate_prompt_positions(config, ref_model.max_sequence_length, folder=model_folder)
    computation = computation_of(config, ref_model)
    workers.agree(
        "what computes (the engines, and their dtype)",
        computation.describe(),
        "use machines of one kind with the same compiler, or set sampling.native=False and ppo.native=False",
    )
    collector, learner = assemble(
        policy,
        ref_model,
        ppo=ppo,
        sampling=config.sampling,
        reward=config.reward,
        computation=computation,
        tokenizer=tokenizer,
        rewards=load_rewards(config, folder, tokenizer),
        strategy=strategy,
    )
    prompts, held_out_prompts = load_prompts_of_training(config, tokenizer, ref_model.max_sequence_length)
    trainer = PpoTrainer(
        config,
        collector,
        learner,
        prompts,
        folder,
        ratio_tolerance=ppo.ratio_tolerance or computation.ratio_tolerance,
        ema=average,
        held_out_prompts=held_out_prompts,
    )
    history.resume(trainer.keeper, trainer.done, left=not trainer.has_ended())
    if has_gpu():
        print(f"replicas: {strategy.num_replicas_in_sync}, on {describe_devices()}")
    print(computation.describe(collector.sampler.engine), flush=True)
    trainer.train(config.profile_steps)
    save_model(policy, tokenizer, folder / "policy")
    if average is not None:
        save_model(average, tokenizer, folder / "policy_average")
    draw_run(folder)


@chief_writes
def draw_run(folder: Path) -> None:
    """Draws WORKDIR/reward_over_kl.png from the record of the run, if it is there, and shows it in TensorBoard."""
    rows, path = read_metrics(folder / "ppo.jsonl"), folder / "reward_over_kl.png"
    if not rows:  # the policy is whole without
        return
    plot_reward_over_kl(rows, path)
    picture = picture_values("charts/reward_over_kl", path, "what each nat of KL bought, and the training curves")
    replace_summaries(folder / "ppo" / "picture", rows[-1]["step"], picture)


def computation_of(config: Config, model: LanguageModel) -> Computation:
    """What PPO computes this model with."""
    trunk = model.trunk
    return choose_computation(
        config.ppo, config.sampling, width=trunk.sizes["hidden_dim"], architecture=trunk.architecture
    )


def new_policy(ppo: PpoConfig, seed: int, language_model: LanguageModel, tokenizer: Tokenizer) -> Policy:
    """A policy over a copy of the language model, with the critic that the settings ask for."""
    actor = copy_language_model(language_model, ppo.dtype)
    policy = Policy(actor, ppo.critic == "separate", ppo.value_head == "mlp", seed_for(seed, "value_head"))
    if ppo.critic_init == "scratch":
        set_keras_seed(seed, "critic")
        policy.restart_critic()
    elif ppo.critic_folder():
        reward_model, its_tokenizer = load_reward_model(ppo.critic_init)
        check_tokenizer(f"ppo.critic_init is {ppo.critic_init!r}", ppo.critic_init, its_tokenizer, tokenizer)
        policy.copy_critic(reward_model)
    return policy
