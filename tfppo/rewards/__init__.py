"""Reward functions: plain callables (prompts, responses) -> scores, all lists of one length."""
