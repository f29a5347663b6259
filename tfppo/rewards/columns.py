"""Which columns of the data go to reward functions."""

from collections.abc import Callable, Sequence

from tfppo.rewards.loading import MODEL_REWARDS, load_reward
from tfppo.rewards.remote import is_url
from tfppo.rewards.signature import Signature


def takes_column(functions: Sequence[str]) -> Callable[[str], bool]:
    """Whether one of the reward functions of these names is given a column, by the column's name.

    One at a URL is sent all columns, and a model takes none. Raises: UserError where there is no function of a name.
    """
    if any(map(is_url, functions)):
        return lambda column: True
    python = [name for name in functions if name.partition(":")[0] not in MODEL_REWARDS]
    signatures = [Signature(name.rpartition(":")[2], load_reward(name)) for name in python]
    return lambda column: any(signature.takes(column) for signature in signatures)
