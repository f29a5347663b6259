"""How a run computes: which engine samples, scores and updates, and why. Chosen once, from settings and devices."""

import math
from dataclasses import dataclass

from tfppo.computation.devices import rounds_products
from tfppo.computation.engine import Engine

# How far the probability ratio may be from 1 at the first minibatch of a rollout: by rounding, no further than this. A
# lost temperature, a mask or a position off by one take it further than a hundredth.
#
# In float32 the roundings of sums and exponentials count: a few 1e-6 as a rule; of a small model with sharp attention,
# 160 rollouts had 2e-5 in the median of their worst tokens, and 1.2e-4 at most.
EXACT_TOLERANCE = 1e-3
# Products of a narrower dtype round every logit: by its unit roundoff times the logit, of up to NATS. Sampling and the
# update do so separately, after states that differ as well; the worst of 1,536 tokens was off by up to 2.9 such
# roundings in bfloat16, for models of 2 to 24 blocks with flat and with sharp distributions.
NATS, ROUNDINGS = 16.0, 4.0
# To the nearest of 24 and of 8 binary digits; a factor that is cut off to TensorFloat-32's 11 is off by twice as much.
UNIT_ROUNDOFFS = {"float32": 2.0**-24, "tensorfloat32": 2.0**-10, "mixed_bfloat16": 2.0**-8}


def ratio_tolerance_of(products: str) -> float:
    """How far rounding may take a probability ratio from 1, by the dtype of products, a key of UNIT_ROUNDOFFS."""
    return max(EXACT_TOLERANCE, math.expm1(ROUNDINGS * NATS * UNIT_ROUNDOFFS[products]))


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The engine of one part of the work, or the engines among which the first call measures; and the reason."""

    engines: tuple[Engine, ...]
    reason: str

    @property
    def engine(self) -> Engine:
        """The engine; where several are to be measured, the one that is taken unless another is clearly faster."""
        return self.engines[0]

    def __str__(self):
        names = " or ".join(engine.name for engine in self.engines)
        return f"{names} in {self.engine.dtype} ({self.reason})"


@dataclass(frozen=True, kw_only=True)
class Computation:
    """What each part of PPO computes with.

    Args: sampling: the responses; scoring: log-probabilities and values of responses that are there already, under
        policy and reference; update: gradients and optimizer steps.
    """

    sampling: Chosen
    scoring: Chosen
    update: Chosen

    @property
    def ratio_tolerance(self) -> float:
        """How far rounding may take the first probability ratio from 1: as far as the narrowest dtype of products."""
        dtypes = {part.engine.dtype for part in (self.sampling, self.scoring, self.update)}
        if rounds_products():
            dtypes = {"tensorfloat32" if dtype == "float32" else dtype for dtype in dtypes}
        return max(map(ratio_tolerance_of, dtypes))

    def describe(self, sampled_by: Engine | None = None) -> str:
        """What samples, scores and updates, and why: a line each.

        Args: sampled_by: the engine that samples, where it was measured before; None: nothing is known of that.
        """
        sampling = self.sampling
        if sampled_by is not None and len(sampling.engines) > 1:
            sampling = Chosen(engines=(sampled_by,), reason="the faster one when the run began")
        parts = {
            "sampling responses": sampling,
            "log-probabilities of the reference": self.scoring,
            "update": self.update,
        }
        return "\n".join(f"{name}: {chosen}" for name, chosen in parts.items())
