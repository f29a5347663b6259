"""How a run computes: which engine samples, scores and updates, and why. Chosen once, from settings and devices."""

from dataclasses import dataclass

from tfppo.computation.engine import Engine

# How far the probability ratio may be from 1 at the first minibatch of a rollout.
# A lost temperature, a mask or a position off by one take it further than a hundredth. Rounding in float32 is a few
# 1e-6 as a rule; of a small model with sharp attention, 160 rollouts had 2e-5 in the median of their worst tokens, and
# 1.2e-4 at most.
EXACT_TOLERANCE, ROUNDED_TOLERANCE = 1e-3, 0.2


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
        """How far rounding may take the first probability ratio from 1: much where a part is not in float32."""
        parts = (self.sampling, self.scoring, self.update)
        is_exact = all(part.engine.dtype == "float32" for part in parts)
        return EXACT_TOLERANCE if is_exact else ROUNDED_TOLERANCE

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
