"""The names that settings choose from. They are not in `ops`, so that reading a config does not import TensorFlow."""

ESTIMATORS = ("gae", "monte_carlo", "rloo", "grpo", "reinforce_pp")
CRITIC_FREE = ("rloo", "grpo", "reinforce_pp")
GROUPED = ("rloo", "grpo")
KL_ESTIMATORS = ("k1", "k2", "k3", "abs")
AGGREGATIONS = ("token_mean", "sequence_mean", "sequence_sum")
PLACEMENTS = ("last_token", "after_last", "last_position")
LONG_PROMPTS = ("refuse", "drop", "cut")
CHAT_TEMPLATES = ("chatml", "hh", "alpaca")
