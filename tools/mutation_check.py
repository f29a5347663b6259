"""Breaks the mathematics one line at a time and looks whether the tests notice.

    python tools/mutation_check.py [--only=NAME] [--jobs=2]

Every mutation gets a copy of tfppo/ and tests/ in a temporary folder, one wrong line, and a run of the few tests that
guard it. Prints killed or survived and the first failing test of each; exit code 1 if any survived, 2 if a mutation
does not fit the source or the tests fail without one. Takes about eight minutes with one job.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from absl import app, flags

ONLY = flags.DEFINE_string("only", None, "Name of the one mutation to try.")
JOBS = flags.DEFINE_integer("jobs", 2, "Runs of pytest at a time.", lower_bound=1)

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("tfppo", "tests", "pyproject.toml")
TIMEOUT = 600

ADVANTAGE, LOSS, REWARD, OPTIMIZER, UPDATE, SAMPLING, ARCHITECTURE, REWARD_MODEL = (
    f"tests/parity/test_{name}_parity.py"
    for name in ("advantage", "loss", "reward", "optimizer", "update", "sampling", "architecture", "reward_model")
)

NATIVE, TRAINING, HEAD, STEPS = (
    f"tests/computation/native/test_{part}.py" for part in ("decoder", "trunk", "head", "optimizer")
)


class Mutation(NamedTuple):
    """One wrong line: `old` must stand exactly once in tfppo/`file`."""

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTATIONS = (
    # Temperature, positions, masks
    Mutation(
        "temperature_dropped_in_the_loss",
        "ppo/learner.py",
        "token_logprobs(logits, batch.response_ids, temperature)",
        "token_logprobs(logits, batch.response_ids)",
        UPDATE,
    ),
    Mutation(
        "temperature_dropped_in_the_sampler",
        "ppo/sampling.py",
        "tf.cast(logits, tf.float32) / (temperature or 1.0)",
        "tf.cast(logits, tf.float32)",
        SAMPLING,
    ),
    Mutation(
        "temperature_dropped_in_the_native_draw",
        "computation/native/sampling.cc",
        "const float scale = 1.0f / static_cast<const Draw *>(kernel)->temperature;",
        "const float scale = 1.0f;",
        NATIVE,
    ),
    Mutation(
        "pads_attended_to_in_bfloat16_sampling",
        "computation/native/sampling_bfloat16.cc",
        "visible |= uint32_t(seen[first + s]) << s;",
        "visible |= 1u << s;",
        NATIVE,
    ),
    Mutation(
        "values_of_odd_slots_lost_in_bfloat16",
        "computation/native/sampling_bfloat16.cc",
        "if (slot % 2)",
        "if (false)",
        NATIVE,
    ),
    Mutation(
        "temperature_dropped_in_native_head",
        "computation/native/head.cc",
        "store_rounded(kept + j, gradient * scale);",
        "store_rounded(kept + j, gradient);",
        HEAD,
    ),
    Mutation(
        "chosen_token_dropped_in_native_head",
        "computation/native/head.cc",
        "gradient[token - j] += dlogprob;",
        "gradient[token - j] += 0;",
        HEAD,
    ),
    Mutation(
        "logits_kept_without_their_base",
        "computation/native/head.cc",
        "rows[r].base = base_of(low, high);",
        "rows[r].base = 0;",
        HEAD,
    ),
    Mutation(
        "rollouts_sampled_in_float32",
        "ppo/rollout.py",
        "with computing_in(policy, dtype):\n                return",
        "with computing_in(policy, policy.dtype_policy.name):\n                return",
        "tests/ppo/test_rollout.py",
    ),
    Mutation(
        "reference_computed_in_float32",
        "ppo/rollout.py",
        "with computing_in(ref_model, dtype), computing_by(ref_model, computed_by):",
        "with computing_in(ref_model, ref_model.dtype_policy.name):",
        "tests/ppo/test_rollout.py",
    ),
    Mutation(
        "pads_attended_to_in_native_sampling",
        "computation/native/kernels.h",
        "sum += scores[s] = seen[s] ? scores[s] : 0.0f;",
        "sum += scores[s];",
        NATIVE,
    ),
    Mutation(
        "native_cache_written_one_slot_late",
        "computation/native/sampling.cc",
        "keys + cache + size_t(b->start + t) * d",
        "keys + cache + size_t(minimum(b->start + t + 1, b->slots - 1)) * d",
        NATIVE,
    ),
    Mutation(
        "pads_computed_in_the_native_update",
        "computation/native/trunk.h",
        "if (real[row * length + t]) {",
        "if (real[row * length + t] || t) {",
        TRAINING,
    ),
    Mutation(
        "scale_dropped_in_the_native_attention_gradient",
        "computation/native/attention.h",
        "(load(slopes + j) - mean) * scale);",
        "(load(slopes + j) - mean));",
        TRAINING,
    ),
    Mutation(
        "mean_dropped_in_the_native_norm_gradient",
        "computation/native/training.cc",
        "* load_some(gamma + i, d - i) - g_mean - normed * gx_mean) * scale;",
        "* load_some(gamma + i, d - i) - normed * gx_mean) * scale;",
        TRAINING,
    ),
    Mutation(
        "future_seen_in_the_native_update",
        "computation/native/attention.h",
        "soften(h.scores + r * ldn, before + i + r + 1, whole, 1.0f / sqrtf(d), false,",
        "soften(h.scores + r * ldn, minimum(before + i + r + 2, seen), whole, 1.0f / sqrtf(d), false,",
        TRAINING,
    ),
    Mutation(
        "gradient_not_scaled_in_the_native_step",
        "computation/native/optimizer.cc",
        "load_numbers(gradient + i, n - i) * own.scale;",
        "load_numbers(gradient + i, n - i);",
        STEPS,
    ),
    Mutation(
        "decay_dropped_in_the_native_step",
        "computation/native/optimizer.cc",
        "* (1.0f - own.decay)",
        "",
        STEPS,
    ),
    Mutation(
        "native_step_written_under_who_reads",
        "computation/native/variables.cc",
        "if (!held.RefCountIsOne())",
        "if (false)",
        STEPS,
    ),
    Mutation(
        "native_rows_replaced_not_added",
        "computation/native/embedding.cc",
        "load_some(to, width - i) + load_some(rows",
        "load_some(rows",
        STEPS,
    ),
    Mutation(
        "temperature_dropped_in_the_reference",
        "ppo/rollout.py",
        "return token_logprobs(logits, response_ids, sampling.temperature)",
        "return token_logprobs(logits, response_ids)",
        SAMPLING,
    ),
    Mutation(
        "value_slice_shifted",
        "models/transformer.py",
        "token_ids = tf.concat([prompt_ids, response_ids[:, :-1]], axis=1)",
        "token_ids = tf.concat([prompt_ids[:, 1:], response_ids], axis=1)",
        SAMPLING,
    ),
    Mutation(
        "last_block_masked_as_at_the_beginning",
        "models/transformer.py",
        "query[:, start:], attention_mask[:, :, start:]",
        "query[:, start:], attention_mask[:, :, : size_of(x, 1) - start]",
        SAMPLING,
    ),
    Mutation(
        "positions_shifted_by_padding",
        "ops/masking.py",
        "return tf.cumsum(mask, axis=1) - mask",
        "return tf.cumsum(tf.ones_like(mask), axis=1) - 1",
        SAMPLING,
    ),
    Mutation(
        "pad_logit_unmasked", "models/language_model.py", "MASKED_SCORE * tf.one_hot", "0.0 * tf.one_hot", SAMPLING
    ),
    Mutation(
        "stop_token_outside_the_mask",
        "ppo/sampling.py",
        "notes = (tokens, tf.cast(alive, tf.float32),",
        "notes = (tokens, tf.cast(alive & (tokens != (-1 if stop_id is None else stop_id)), tf.float32),",
        SAMPLING,
    ),
    Mutation(
        "mask_forgotten_in_a_mean",
        "ops/masking.py",
        "tf.reduce_sum(mask, axis=axis))",
        "tf.reduce_sum(tf.ones_like(mask), axis=axis))",
        ADVANTAGE,
    ),
    Mutation(
        "padding_in_the_kl",
        "ppo/targets.py",
        "log_ratio = zero_padding(rollout.logprobs - rollout.ref_logprobs, mask)",
        "log_ratio = rollout.logprobs - rollout.ref_logprobs",
        REWARD,
    ),
    # Rewards
    Mutation(
        "kl_penalty_rewarded", "ppo/targets.py", "reward.placement) - penalty", "reward.placement) + penalty", REWARD
    ),
    Mutation(
        "score_at_the_first_token",
        "ops/shaping.py",
        "return scores[:, None] * last_token_one_hot(mask)",
        "return scores[:, None] * tf.one_hot(0, tf.shape(mask)[1])",
        REWARD,
    ),
    Mutation(
        "score_after_last_at_the_last_token",
        "ops/shaping.py",
        "last_token_one_hot(mask_after_last(mask))",
        "last_token_one_hot(mask)",
        REWARD,
    ),
    Mutation("k3_sign", "ops/kl.py", "tf.math.expm1(-bounded) + bounded", "tf.math.expm1(bounded) - bounded", REWARD),
    Mutation(
        "adaptive_kl_unclipped",
        "ops/kl.py",
        "min(max(kl / target - 1.0, -0.2), 0.2)",
        "kl / target - 1.0",
        REWARD,
    ),
    # Advantages and whitening
    Mutation("whitening_flag_inverted", "ops/masking.py", "if not shift_mean:", "if shift_mean:", ADVANTAGE),
    Mutation("biased_and_unbiased_swapped", "ops/masking.py", "if unbiased:", "if not unbiased:", ADVANTAGE),
    Mutation(
        "bootstrap_past_the_end",
        "ops/advantages.py",
        "(nothing, nothing))",
        "(nothing, values[:, -1]))",
        ADVANTAGE,
    ),
    Mutation(
        "bootstrap_from_the_padding",
        "ops/advantages.py",
        "tf.where(is_real, value, next_value)",
        "value",
        ADVANTAGE,
    ),
    Mutation("gamma_dropped", "ops/advantages.py", "reward + gamma * next_value", "reward + next_value", ADVANTAGE),
    Mutation("lambda_dropped", "ops/advantages.py", "gamma * gae_lambda * next", "gamma * next", ADVANTAGE),
    Mutation(
        "advantage_of_a_gap",
        "ops/advantages.py",
        "tf.where(is_real, advantage, next_advantage)",
        "tf.where(is_real, advantage, 0.0 * next_advantage)",
        ADVANTAGE,
    ),
    Mutation(
        "whitened_over_the_rollout_not_the_minibatch",
        "ppo/learner.py",
        'config.whiten_scope == "rollout"',
        'config.whiten_scope != ""',
        UPDATE,
    ),
    Mutation(
        "rloo_includes_itself",
        "ops/advantages.py",
        "others = (tf.reduce_sum(groups, axis=1, keepdims=True) - groups) / (group_size - 1)",
        "others = tf.reduce_mean(groups, axis=1, keepdims=True)",
        ADVANTAGE,
    ),
    Mutation("grpo_without_std", "ops/advantages.py", "centred / (deviation + 1e-6)", "centred", ADVANTAGE),
    Mutation(
        "whitened_before_the_returns",
        "ppo/targets.py",
        "advantages = whiten(advantages, mask, shift_mean=True, unbiased=ppo.whiten_unbiased)",
        "advantages = whiten(advantages, mask, shift_mean=True, unbiased=ppo.whiten_unbiased)\n"
        "        returns = advantages + zero_padding(rollout.values, critic_mask)",
        REWARD,
    ),
    # Losses
    Mutation(
        "clip_bounds_swapped",
        "ops/losses.py",
        "tf.clip_by_value(ratio, 1.0 - clip_range, 1.0 + high)",
        "tf.clip_by_value(ratio, 1.0 - high, 1.0 + clip_range)",
        LOSS,
    ),
    Mutation(
        "surrogate_min_for_max",
        "ops/losses.py",
        "tf.maximum(-advantages * ratio",
        "tf.minimum(-advantages * ratio",
        LOSS,
    ),
    Mutation(
        "value_clip_removed",
        "ops/losses.py",
        "squared_error = tf.maximum(squared_error, tf.square(clipped - returns))",
        "del clipped",
        LOSS,
    ),
    Mutation(
        "sequence_mean_is_a_sum",
        "ops/losses.py",
        "tf.math.divide_no_nan(mask, tf.reduce_sum(mask, axis=1, keepdims=True)) / num_sequences",
        "tf.math.divide_no_nan(mask, tf.reduce_sum(mask, axis=1, keepdims=True))",
        LOSS,
    ),
    Mutation(
        "entropy_sign", "ppo/learner.py", "objective -= config.entropy_coef", "objective += config.entropy_coef", UPDATE
    ),
    # Optimizer
    Mutation(
        "adam_epsilon_outside_the_correction",
        "training/optimization.py",
        "        return self.epsilon\n",
        "        return self.epsilon * tf.sqrt(1.0 - tf.pow(self.beta_2, tf.cast(self.iterations + 1, tf.float32)))\n",
        OPTIMIZER,
    ),
    Mutation(
        "adamw_epsilon_of_tensorflow",
        "training/optimization.py",
        "self.epsilon * tf.sqrt(correction)",
        "self.epsilon",
        OPTIMIZER,
    ),
    Mutation(
        "gradient_not_clipped",
        "training/optimization.py",
        "scales[i] = scale",
        "scales[i] = None",
        OPTIMIZER,
    ),
    Mutation(
        "clipping_left_out_on_one_replica",
        "training/optimization.py",
        "strategy.run(optimizer.apply_scaled, (gradients, scales))",
        "strategy.run(optimizer.apply, (gradients,))",
        UPDATE,
    ),
    # Reward models
    Mutation(
        "preference_loss_sign",
        "ops/losses.py",
        "tf.nn.softplus(tf.reduce_logsumexp(scores[:, 1:], axis=1) - scores[:, 0])",
        "tf.nn.softplus(scores[:, 0] - tf.reduce_logsumexp(scores[:, 1:], axis=1))",
        REWARD_MODEL,
    ),
    Mutation(
        "reward_read_before_the_last_token",
        "models/reward_model.py",
        "tf.gather(states, lengths, batch_dims=1)",
        "tf.gather(states, tf.maximum(lengths - 1, 0), batch_dims=1)",
        REWARD_MODEL,
    ),
    Mutation(
        "normalising_bias_without_the_gain",
        "reward_model/normalization.py",
        "-gain * scores.mean()",
        "-scores.mean()",
        REWARD_MODEL,
    ),
    # Initialisation
    Mutation(
        "one_block_too_many_learns",
        "models/transformer.py",
        "self.blocks[:-num_blocks]",
        "self.blocks[: -num_blocks - 1]",
        ARCHITECTURE,
    ),
    Mutation(
        "value_head_too_large",
        "models/policy.py",
        "bound = fan_in**-0.5",
        "bound = 3**0.5 * fan_in**-0.5",
        ARCHITECTURE,
    ),
    Mutation(
        "reward_head_too_small",
        "models/reward_model.py",
        "(hidden_dim + 1) ** -0.5",
        "1 / (hidden_dim + 1)",
        ARCHITECTURE,
    ),
)


def copy_of_the_repository(folder):
    """Copies what the tests need."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, folder / name)


def mutate(folder, mutation):
    """Puts the wrong line in. Raises: ValueError where the old text is not found exactly once."""
    path = folder / "tfppo" / mutation.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        raise ValueError(
            f"{mutation.name}: {text.count(mutation.old)} times in tfppo/{mutation.file}: {mutation.old!r}"
        )
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")


def run_tests(folder, tests):
    """pytest's exit code, and the first failing test or the last line that it printed."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "0",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "--tb=no",
        "--color=no",
        *tests,
    ]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    failed = re.search(r"^(?:FAILED|ERROR) \S*?/?(\w+\.py(?:::\S+)?)", result.stdout, re.MULTILINE)
    lines = result.stdout.strip().splitlines() or result.stderr.strip().splitlines() or [""]
    return result.returncode, failed.group(1) if failed else lines[-1]


def check(mutation):
    """(verdict, detail) of a mutation; of None: of the source as it is, under all tests."""
    with tempfile.TemporaryDirectory(prefix="mutation_") as name:
        folder = Path(name)
        copy_of_the_repository(folder)
        if mutation is not None:
            mutate(folder, mutation)
        tests = sorted({m.tests for m in selected()}) if mutation is None else [mutation.tests]
        code, detail = run_tests(folder, tests)
    # 1: tests failed. 2 and more: pytest could not run them, which says nothing about the tests.
    return {0: "survived", 1: "killed"}.get(code, f"broken ({code})"), detail


def selected():
    """The mutations that the flags ask for."""
    return [mutation for mutation in MUTATIONS if ONLY.value in (None, mutation.name)]


def main(argv):
    if len(argv) > 1:
        raise app.UsageError("this program takes flags only")
    mutations = selected()
    if not mutations:
        raise app.UsageError(f"--only={ONLY.value}: choose one of {', '.join(m.name for m in MUTATIONS)}")
    for mutation in mutations:  # all of them before the first run: they have to fit the source
        with tempfile.TemporaryDirectory(prefix="mutation_") as name:
            folder = Path(name)
            copy_of_the_repository(folder)
            try:
                mutate(folder, mutation)
            except ValueError as error:
                print(error)
                sys.exit(2)
    verdict, detail = check(None)
    if verdict != "survived":
        print(f"the tests fail without a mutation: {detail}")
        sys.exit(2)
    counts = {}
    with ThreadPoolExecutor(JOBS.value) as pool:
        for mutation, (verdict, detail) in zip(mutations, pool.map(check, mutations), strict=True):
            counts[verdict] = counts.get(verdict, 0) + 1
            print(f"{verdict:<10}{mutation.name:<48}{detail}", flush=True)
    print(f"{len(mutations)} mutations: " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
    sys.exit(0 if set(counts) == {"killed"} else 1)


if __name__ == "__main__":
    app.run(main)
