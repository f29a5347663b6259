"""Trains a language model, fine-tunes it with PPO, evaluates and exports it, in about five minutes.

    tfppo quickstart --workdir=runs/quickstart

Run the same command again to go on after an interruption. WORKDIR then holds the models, TensorBoard logs, the table
samples.md, the picture reward_over_kl.png, evaluation.json and the SavedModel export/1.
"""

import time
from collections.abc import Callable
from pathlib import Path

from absl.flags import FlagValues

from tfppo.cluster import chief_writes
from tfppo.config import Config
from tfppo.stages import cli


def main(config: Config, workdir: str, flags: FlagValues) -> None:
    """Goes through all stages."""
    started = time.time()
    from tfppo.stages.checks import check_batches
    from tfppo.stages.evaluate import evaluate_model, record_evaluations
    from tfppo.stages.language_model import train_language_model
    from tfppo.stages.ppo import check_ppo, train_ppo
    from tfppo.stages.results import evaluation_result
    from tfppo.stages.rewards import check_rewards
    from tfppo.stages.workdir import language_model_folder, open_run

    def stage(title):
        print(f"\n[{time.time() - started:4.0f} s] {title}", flush=True)

    folder, strategy = open_run(config, workdir)
    check_ppo(config, folder)
    check_batches(config, strategy)
    stage("1/5 language model: byte-level BPE and a Transformer, from the texts")
    train_language_model(config, folder, strategy)
    stage("2/5 PPO: towards the reward, near the language model")
    train_ppo(config, folder, strategy)
    stage("3/5 evaluation on held-out prompts")
    check_rewards(config, folder, "test")
    before = evaluate_model(config, folder, strategy, language_model_folder(config, folder))
    after = evaluate_model(config, folder, strategy, folder / "policy")
    columns = {"before PPO": before, "after PPO": after}
    print(record_evaluations(columns, folder, num_samples=config.evaluation.num_samples))
    export_and_try(config, folder, before.prompts[0], stage)
    print(f"result: {evaluation_result(before.figures, after.figures)}")


@chief_writes
def export_and_try(config: Config, folder: Path, prompt: str, stage: Callable[[str], None]) -> None:
    """Exports the policy, and continues a prompt with the SavedModel. Args: stage: says what is done."""
    import tensorflow as tf

    from tfppo.stages.export import export_model
    from tfppo.training.plain_path import plain_path

    stage("4/5 export")
    exported = export_model(config, folder, folder / "policy")
    stage("5/5 the SavedModel continues a string")
    with plain_path(exported) as path:
        served = tf.saved_model.load(str(path))
    completion = served.signatures["generate"](prompt=tf.constant([prompt]))["completion"].numpy()[0].decode()
    print(f"{prompt}|{completion}")
    stage("done")
    print(f"tables: {folder}/samples.md, picture: {folder}/reward_over_kl.png, SavedModel: {exported}")


def run() -> None:
    """The command, with the flags of sys.argv."""
    cli.run(main, doc=__doc__, then=cli.AFTER_QUICKSTART, trains=True)
