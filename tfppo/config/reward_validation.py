"""What settings of rewards must hold: of functions and scores, and of how they are called, also at a URL."""

import math
import re
from numbers import Real
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tfppo.config.choices import PLACEMENTS
from tfppo.config.validation import require, require_one_of, require_positive
from tfppo.errors import UserError

if TYPE_CHECKING:  # settings.py imports this module
    from tfppo.config.settings import RewardConfig

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def validate_reward(reward: "RewardConfig") -> None:
    """Raises UserError for values of a RewardConfig that do not fit."""
    require(bool(reward.functions), "reward.functions", reward.functions, "name at least one function")
    for name in reward.functions:
        require(
            ":" in name,
            "reward.functions",
            name,
            "write module:function, path/file.py:function, https://host/path, likelihood: or reward_model:",
        )
    _validate_calls(reward)
    require(
        len(reward.weights) == len(reward.functions),
        "reward.weights",
        reward.weights,
        f"give one weight for each of the {len(reward.functions)} functions",
    )
    require(
        all(map(_is_finite, reward.weights)),
        "reward.weights",
        reward.weights,
        "each must be a finite number",
    )
    require_one_of("reward.placement", reward.placement, PLACEMENTS)
    require_one_of("reward.missing_stop_mode", reward.missing_stop_mode, ("subtract", "replace"))
    require(reward.clip is None or reward.clip > 0, "reward.clip", reward.clip, "it must be above 0, or None for off")
    require_positive("reward", reward, "scale")
    penalty = reward.missing_stop_penalty
    require(
        penalty is None or math.isfinite(penalty),
        "reward.missing_stop_penalty",
        penalty,
        "it must be finite, or None for off",
    )
    require(reward.truncate_after >= 0, "reward.truncate_after", reward.truncate_after, "it must not be negative")
    require(
        reward.truncate_after == 0 or reward.truncate_at_eos,
        "reward.truncate_after",
        reward.truncate_after,
        "it needs reward.truncate_at_eos=True; set that or use 0",
    )


def _validate_calls(reward):
    require(reward.retries is None or reward.retries >= 0, "reward.retries", reward.retries, "it must not be negative")
    require(
        reward.timeout is None or 0 < reward.timeout < 1e6,
        "reward.timeout",
        reward.timeout,
        "it must be above 0 and below a million seconds, or None",
    )
    require_positive("reward", reward, "url_batch_size", "url_concurrency")
    variable = reward.url_token_variable
    if variable is not None and not re.fullmatch(r"[A-Za-z_]\w*", variable):
        # Not shown: it may be the token itself.
        raise UserError("reward.url_token_variable is no name of an environment variable; put the token into one")
    for name in reward.functions:
        if name.startswith(("http://", "https://")):
            _validate_url(name, variable)


def _validate_url(url, variable):
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port  # raises for one that is no number
    except ValueError:
        host = None
    require(bool(host), "reward.functions", url, "write https://host/path")
    if "@" in parts.netloc:
        raise UserError(
            f"reward.functions has a URL of {host!r} with a password, which would be written to config.json; "
            f"put a token into an environment variable and name that in reward.url_token_variable"
        )
    require(
        variable is None or parts.scheme == "https" or host in LOOPBACK,
        "reward.functions",
        url,
        "a token (reward.url_token_variable) is sent over https only",
    )


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)
