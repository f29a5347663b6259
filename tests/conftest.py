"""Marks the slow tests: `pytest -m "not slow"` is the part that fits before a commit.

A test is slow when it takes about three seconds or more on two cores, all its parameters together, or when its file's
tests share something that does (`pytest --durations=0` shows it). The parity of a whole update and of its first step is
not: it is what a change of the mathematics breaks first.
"""

import os
import signal
import sys
from pathlib import Path

import pytest
from absl import logging

TESTS = Path(__file__).parent

# Each of the workers has a core to itself, and models here are small: more threads of TensorFlow only wait for each
# other, a fifth of the suite's time. A run that goes on bit for bit has as many as a user's (ppo/test_resume.py).
THREADS = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
for _name in THREADS:
    os.environ.setdefault(_name, "1")

# A shell that starts the suite in the background lets it ignore Ctrl-C, and what is started from here would do so too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Of a file all tests (None), or those of these names.
SLOW: dict[str, set[str] | None] = {
    "computation/native/test_building.py": None,
    "computation/native/test_cache.py": {"test_a_damaged_library_is_built_anew_and_loaded"},
    "computation/native/test_decoder.py": {
        "test_in_bfloat16_they_are_those_of_the_update",
        "test_logits_and_values_are_those_of_the_policy",
    },
    "computation/native/test_narrow_vectors.py": None,
    "computation/native/test_refusals.py": {"test_where_memory_ends_an_operation_fails_and_the_next_one_runs"},
    "computation/native/test_threads.py": None,
    "computation/native/test_trunk.py": {"test_an_update_is_near_the_one_in_float32"},
    "computation/test_graph.py": None,
    "computation/test_modes.py": None,
    "data/test_tokenizer.py": {"test_saved_model_in_process_with_tensorflow_only"},
    "lm/test_lm_trainer.py": {"test_on_a_gpu_a_step_is_one_program_and_the_same"},
    "models/test_folder.py": {"test_policy_comes_back"},
    "models/test_folder_killed.py": None,
    "models/test_stacking.py": None,
    "parity/test_architecture_parity.py": {"test_I5_what_is_frozen_keeps_its_last_bit"},
    "parity/test_reward_model_parity.py": {
        "test_R14_scores_of_samples_get_mean_0_and_deviation_1",
        "test_R15_scores_of_demonstrations_get_mean_0_and_keep_their_gain",
    },
    "parity/test_sampling_parity.py": None,
    "parity/test_update_parity.py": {"test_L9_L10_the_same_update_computed_otherwise"},
    "planning/test_estimate_binary.py": {"test_every_flag_of_the_binary_changes_the_table"},
    "planning/test_benchmark.py": {
        "test_the_binary_prints_json_and_a_table_and_appends_to_a_file",
        "test_the_binary_takes_every_other_flag",
        "test_the_binary_times_an_update_alone_beside_a_stated_peak",
    },
    "ppo/test_critic_rates.py": None,
    "ppo/test_evaluation.py": {"test_one_prompt_has_figures_and_no_standard_error"},
    "ppo/test_held_out.py": {"test_the_figures_are_those_of_plain_loops_over_the_samples"},
    "ppo/test_learning.py": None,
    "ppo/test_minibatch_parts.py": {
        "test_a_ratio_that_is_off_is_seen_in_whichever_part_it_is",
        "test_checkpointed_gradients_are_the_same",
        "test_parameters_do_not_depend_on_how_a_minibatch_is_computed",
        "test_update_in_bfloat16_is_near_the_one_in_float32_and_leaves_weights_in_float32",
    },
    "ppo/test_resume.py": None,
    "ppo/test_reward_failures.py": None,
    "ppo/test_rollout.py": {
        "test_a_replay_has_the_actions_of_the_data",
        "test_in_bfloat16_all_of_a_rollout_is_of_one_dtype",
    },
    "ppo/test_sampling.py": {
        "test_every_token_is_where_its_uniform_says",
        "test_jit_gives_the_same_text",
        "test_logprobs_and_values_are_those_of_a_full_forward",
        "test_rows_that_go_on_in_smaller_batches_get_what_they_would_get_in_the_whole",
        "test_the_stop_token_counts_and_nothing_after_it",
        "test_the_value_after_the_stop_token",
    },
    "ppo/test_trainable_blocks.py": None,
    "ppo/test_update_in_one_program.py": None,
    "ppo/test_trainer.py": None,
    "ppo/test_update.py": {"test_the_epochs_end_before_the_step_that_is_too_far"},
    "ppo/test_update_invariances.py": None,
    "reward_model/test_reward_trainer.py": None,
    "serving/test_export.py": None,
    "stages/test_binaries.py": None,
    "test_commands.py": {"test_it_is_parsed_and_fits_the_models_that_it_names"},
    "test_installed.py": None,
    "stages/test_lm_stage.py": None,
    "stages/test_resuming.py": None,
    "stages/test_several_workers.py": None,
    "stages/test_cli.py": None,
    "training/test_interrupt.py": None,
    "training/test_replicas.py": None,
}


# The slowest files, first: what begins last should end soon, or one worker waits for the other.
FIRST = (
    "stages/test_several_workers.py",
    "stages/test_binaries.py",
    "ppo/test_resume.py",
    "training/test_replicas.py",
    "ppo/test_learning.py",
    "reward_model/test_reward_trainer.py",
    "planning/test_benchmark.py",
)


def on_a_card(config: pytest.Config) -> bool:
    """Whether the tests that only a GPU can show are what is asked for: `pytest -m gpu`."""
    return config.option.markexpr == "gpu"


def pytest_configure(config: pytest.Config) -> None:
    """All other tests are those of a CPU, with its C++ operations and its last bits, on a machine with a GPU too."""
    if not on_a_card(config):
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if file_of(item).startswith("gpu/"):
            item.add_marker("gpu")
            if not on_a_card(config):
                item.add_marker(pytest.mark.skip(reason="needs a GPU: pytest -m gpu"))
        names = SLOW.get(file_of(item), set())
        if names is None or item.name.partition("[")[0] in names:
            item.add_marker(pytest.mark.slow)
    items.sort(key=turn)


def file_of(item: pytest.Item) -> str:
    return item.path.relative_to(TESTS).as_posix()


def turn(item: pytest.Item) -> tuple[int, bool]:
    """Files of FIRST in its order, then those with slow tests, then the others; in each as they were."""
    file = file_of(item)
    return FIRST.index(file) if file in FIRST else len(FIRST), file not in SLOW


@pytest.fixture(scope="module", autouse=True)
def graphs_as_traced(request):
    """Graphs run as they were traced: TensorFlow's rewriting of them (Grappler) takes a fifth of the suite's time.

    Not so in `parity`, nor in the binaries that tests start: these compute as a user's do (but
    for those of stages/test_several_workers.py, which are many).
    """
    if "tensorflow" in sys.modules:
        run_graphs_as_traced("parity" not in request.path.parts)


def run_graphs_as_traced(chosen: bool) -> None:
    """Whether TensorFlow, which is imported already, leaves graphs as they were traced."""
    sys.modules["tensorflow"].config.optimizer.set_experimental_options({"disable_meta_optimizer": chosen})


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is logged as a warning."""
    lines: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda message, *values: lines.append(message % values))
    return lines
