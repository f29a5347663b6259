"""Language-model training, and how likely a model finds texts."""
