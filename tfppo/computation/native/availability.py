"""Whether the C++ operations can be had here, as a setting wants them; and the reason, to be printed."""

from types import ModuleType

from absl import logging

from tfppo.computation.native import building
from tfppo.errors import UserError

# What operations for AVX512_BF16 are known by: without its instructions they are not built.
BFLOAT16_SAMPLING, BFLOAT16_TRAINING = "tfppo_pack", "tfppo_trunk"


def find_operations(
    field: str, setting: bool | None, *, dtype: str, refusal: str | None, needs: str | None
) -> tuple[ModuleType | None, str]:
    """The loaded operations, or None; and why.

    Args:
        field, setting: of the configuration: True insists, None takes them where they help, False does without.
        dtype: Keras dtype policy that they are to compute in.
        refusal: why they would not help, where a setting of None is not to take them.
        needs: an operation that must be among them; None: any will do.
    Raises: UserError where they are insisted on, and cannot be had.
    """
    if setting is False:
        return None, f"{field} is False"
    if setting is None and refusal:
        return None, refusal
    ops, reason = building.load()
    if ops is None:
        _without(field, setting, reason)
        return None, "it cannot be built here"
    if needs is None or hasattr(ops, needs):
        return ops, "C++ built for this processor"
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
