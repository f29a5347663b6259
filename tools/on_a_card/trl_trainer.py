"""TRL's PPO trainer on the same card, as a yardstick for a whole iteration. Needs TRL with a PPO trainer.

    python tools/on_a_card/trl_trainer.py '{"device": "cuda", "layers": 12, ...}'

Policy, reference, value model and reward model are GPT-2 of the same size, as TRL has them; prompts are of one length
and responses never stop. Prints one line of JSON: the median seconds of an iteration, and the most memory that tensors
took.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from types import SimpleNamespace

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import datasets
import tokenizers
import torch
import transformers
import trl
from yardstick import about, gpt2


def main(text):
    """Trains for a few iterations."""
    sizes = SimpleNamespace(**json.loads(text))
    torch.manual_seed(0)
    clock = Clock(sizes.device == "cuda")
    with tempfile.TemporaryDirectory() as folder:
        trainer(sizes, folder, clock).train()
    first, *others = (after - before for before, after in zip(clock.times, clock.times[1:], strict=False))
    figures = {"first_call_seconds": first, "seconds": statistics.median(others), "trl": trl.__version__}
    print("\n" + json.dumps(figures | about(sizes)), flush=True)


class Clock(transformers.TrainerCallback):
    """Notes when training begins, and when each iteration ends."""

    def __init__(self, on_gpu):
        self.on_gpu, self.times = on_gpu, []

    def on_train_begin(self, *arguments, **more):
        self._note()

    def on_step_end(self, *arguments, **more):
        self._note()

    def _note(self):
        if self.on_gpu:
            torch.cuda.synchronize()
            if len(self.times) == 1:  # what came before is not an iteration's
                torch.cuda.reset_peak_memory_stats()
        self.times.append(time.perf_counter())


def trainer(sizes, folder, clock):
    """TRL's trainer, at its defaults but for the workload."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    how = PPOConfig(
        output_dir=folder,
        per_device_train_batch_size=sizes.batch,
        gradient_accumulation_steps=1,
        num_mini_batches=sizes.minibatches,
        num_ppo_epochs=sizes.epochs,
        local_rollout_forward_batch_size=sizes.batch,
        total_episodes=sizes.batch * (1 + sizes.runs),
        response_length=sizes.response,
        temperature=1.0,
        stop_token=None,
        kl_coef=0.05,
        learning_rate=1e-6,
        gradient_checkpointing=False,
        num_sample_generations=0,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=sizes.device != "cuda",
    )
    rows = torch.randint(2, sizes.vocabulary, (sizes.batch * 4, sizes.prompt)).tolist()
    data = datasets.Dataset.from_dict({"input_ids": rows})
    policy, reference = gpt2(sizes), gpt2(sizes)
    value, reward = (scorer(policy.config).to(sizes.device) for _ in range(2))
    return PPOTrainer(
        args=how,
        processing_class=tokenizer(sizes),
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=data,
        eval_dataset=data,
        callbacks=[clock],
    )


def scorer(config):
    """A model of the same size with one score a position."""
    config = transformers.GPT2Config.from_dict({**config.to_dict(), "num_labels": 1})
    return transformers.GPT2ForSequenceClassification(config)


def tokenizer(sizes):
    """One that has as many tokens, and the names that TRL asks for."""
    words = {f"t{number}": number for number in range(sizes.vocabulary)}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="t0"))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, eos_token="t0", pad_token="t1", padding_side="left"
    )


if __name__ == "__main__":
    main(sys.argv[1])
