"""What the C++ operations compute, and whether they can be had here as a setting wants them; with reasons to print."""

from types import ModuleType

from absl import logging

from tfppo.computation.devices import has_fast_bfloat16, has_gpu
from tfppo.computation.native import building
from tfppo.config import PpoConfig
from tfppo.errors import UserError

ARCHITECTURES = ("gpt2",)

# What operations for AVX512_BF16 are known by: without its instructions they are not built.
BFLOAT16_SAMPLING, BFLOAT16_TRAINING = "tfppo_pack", "tfppo_trunk"


def refusal_to_sample(dtype: str) -> str | None:
    """Why the operations do not help to sample in a Keras dtype policy here; None where they do."""
    if has_gpu():
        return "there is a GPU"
    return None if dtype == "float32" or has_fast_bfloat16() else "bfloat16 is not fast on this processor"


def refusal_to_update(ppo: PpoConfig, dtype: str) -> str | None:
    """Why the operations do not help with an update in a Keras dtype policy here; None where they do."""
    if dtype != "mixed_bfloat16":
        return "C++ updates in bfloat16 only"
    if ppo.trainable_blocks is not None:
        return "C++ updates all blocks, and ppo.trainable_blocks wants some"
    if ppo.gradient_checkpointing:
        return "C++ does not recompute blocks, as ppo.gradient_checkpointing asks"
    if ppo.jit_compile:
        return "ppo.jit_compile asks for XLA"
    if has_gpu():
        return "there is a GPU"
    return None if has_fast_bfloat16() else "bfloat16 is not fast on this processor"


def find_operations(
    field: str, setting: bool | None, *, architecture: str, dtype: str, refusal: str | None, needs: str | None
) -> tuple[ModuleType | None, str]:
    """The loaded operations, or None; and why.

    Args:
        field, setting: of the configuration: True insists, None takes them where they help, False does without.
        architecture, dtype: of the model, and the Keras dtype policy that it is to compute in.
        refusal: why they would not help, where a setting of None is not to take them.
        needs: an operation that must be among them; None: any will do.
    Raises: UserError where they are insisted on, and cannot be had.
    """
    if setting is False:
        return None, f"{field} is False"
    if architecture not in ARCHITECTURES:
        mismatch = f"C++ computes {', '.join(ARCHITECTURES)}, and the model is {architecture}"
        if setting:
            raise UserError(f"{field} is True, but {mismatch}; set {field} to None")
        return None, mismatch
    if setting is None and refusal:
        return None, refusal
    ops, reason = building.load()
    if ops is None:
        _without(field, setting, reason)
        return None, "C++ cannot be built here"
    if needs is None or hasattr(ops, needs):
        return ops, "built for this processor"
    if setting:
        raise UserError(
            f"{field} is True in {dtype}, but this processor has no AVX512_BF16, whose instructions that takes; "
            f"set {field} to None, or compute in float32"
        )
    return None, "this processor has no AVX512_BF16"


def _without(field, setting, reason):
    if setting:
        raise UserError(
            f"{field} is True, but its operations can't be built ({reason}); "
            f"install a C++ compiler with OpenMP (such as g++), name it in CXX, or set {field} to None"
        )
    logging.warning(
        "PPO goes without the operations for CPUs, which is slower: %s. Install a C++ compiler with OpenMP "
        "(such as g++), or set %s to False to go on without this warning.",
        reason,
        field,
    )
