"""Settings of an experiment, the rules for them, and named recipes."""

from tfppo.config.settings import (
    Config,
    DataConfig,
    EvaluationConfig,
    LmConfig,
    ModelConfig,
    PpoConfig,
    RewardConfig,
    RewardModelConfig,
    SamplingConfig,
)

__all__ = [
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "LmConfig",
    "ModelConfig",
    "PpoConfig",
    "RewardConfig",
    "RewardModelConfig",
    "SamplingConfig",
]
