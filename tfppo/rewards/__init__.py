"""Reward functions: callables (prompts, responses) -> scores, and models that score tokens."""
