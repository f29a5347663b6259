"""The whole road in about five minutes: text, language model, PPO, evaluation, SavedModel.

    python tools/quickstart.py --workdir=runs/quickstart

Run the same command again to go on after an interruption. WORKDIR then holds the models, TensorBoard logs, the table
samples.md, the picture reward_over_kl.png, evaluation.json and the SavedModel export/1.
"""

import time
from pathlib import Path

from tfppo.stages import cli

CONFIG = Path(__file__).parents[1] / "configs" / "movie_snippets.py"


def main(config, workdir, flags):
    started = time.time()
    from tfppo.ppo.evaluation import format_figures, format_samples
    from tfppo.stages.experiment import Experiment

    def stage(title):
        print(f"\n[{time.time() - started:4.0f} s] {title}", flush=True)

    experiment = Experiment(config, workdir)
    experiment.check_ppo()
    stage("1/5 language model: byte-level BPE and a Transformer, from the texts")
    experiment.train_lm()
    stage("2/5 PPO: towards the reward, near the language model")
    experiment.train_ppo()
    stage("3/5 evaluation on held-out prompts")
    before = experiment.evaluate(experiment.language_model_folder())
    after = experiment.evaluate(experiment.folder / "policy")
    columns = {"before PPO": before.figures, "after PPO": after.figures}
    experiment.write_evaluation(columns)
    table = format_samples(before, after, rows=config.evaluation.num_samples)
    (experiment.folder / "samples.md").write_text(f"{table}\n\n{format_figures(columns)}\n")
    print(f"{table}\n\n{format_figures(columns)}")
    stage("4/5 export")
    exported = experiment.export(experiment.folder / "policy")
    stage("5/5 the SavedModel continues a string")
    import tensorflow as tf

    served = tf.saved_model.load(str(exported))
    prompt = before.prompts[0]
    completion = served.signatures["generate"](prompt=tf.constant([prompt]))["completion"].numpy()[0].decode()
    print(f"{prompt}|{completion}")
    stage("done")
    print(f"tables: {workdir}/samples.md, picture: {workdir}/reward_over_kl.png, SavedModel: {exported}")
    print(f"curves: tensorboard --logdir {workdir}")


if __name__ == "__main__":
    cli.run(main, default_config=str(CONFIG))
