"""Settings of an experiment: what there is, what it must hold, and recipes by name."""

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
