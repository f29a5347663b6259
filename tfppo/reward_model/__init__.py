"""Reward models: training on comparisons of responses, and normalisation."""
