"""The engines that sample from a model outside of PPO."""

from tfppo.computation.choice import choose_sampling
from tfppo.computation.engine import Engine
from tfppo.config import SamplingConfig
from tfppo.models.language_model import LanguageModel


def engines_that_sample(sampling: SamplingConfig, model: LanguageModel) -> tuple[Engine, ...]:
    """What samples from a model in its own dtype, for a few calls: nothing is measured."""
    return choose_sampling(sampling, model.dtype_policy.name, architecture=model.trunk.architecture).engines
