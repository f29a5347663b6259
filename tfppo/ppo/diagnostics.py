"""Warnings about typical failures of a PPO run, with the likely cause; each is given once."""


class Diagnostics:
    """Watches the scalars of a run.

    Args:
        has_critic: whether the advantages use values.
        can_stop: whether sampling ends at EOS.
    """

    def __init__(self, *, has_critic: bool, can_stop: bool):
        self._has_critic, self._can_stop = has_critic, can_stop
        self._in_a_row: dict[str, int] = {}  # iterations that a sign has held
        self._given: set[str] = set()  # signs that were told
        self._first_entropy: float | None = None

    def update(self, scalars: dict[str, float]) -> list[str]:
        """The new warnings after one iteration's scalars."""
        if self._first_entropy is None:
            self._first_entropy = scalars["policy/entropy"]
        length = scalars["response/length"]
        signs = {
            # (holds now, iterations in a row before it is said, text)
            "kl": (
                scalars["objective/kl"] < -0.01 * length,
                10,
                "the KL to the reference has been negative for 10 iterations: responses are not drawn from the "
                "distribution that is measured. Look for sampling filters, another temperature, or a wrong reference",
            ),
            "entropy": (
                scalars["policy/entropy"] < 0.05 * self._first_entropy,
                3,
                "the entropy has fallen below a twentieth of what it was: the policy has collapsed to few responses. "
                "Raise ppo.kl_coef or ppo.entropy_coef, or lower ppo.learning_rate",
            ),
            "advantages": (
                scalars["objective/largest_advantage"] < 1e-7,
                1,
                "all advantages are zero, so nothing is learned: the reward is the same for every response. Look at "
                "the reward function, and at reward.clip",
            ),
            "groups": (
                scalars.get("objective/groups_without_spread", 0.0) > 0.5,
                3,
                "for 3 iterations, most prompts have had responses of one score each, from which nothing is learned. "
                "The task is too easy or too hard for the policy, or the reward too coarse: raise ppo.group_size, or "
                "change prompts or reward",
            ),
            "critic": (
                self._has_critic and scalars["value/explained_variance"] < 0.0,
                30,
                "the value function has explained nothing for 30 iterations. Raise ppo.value_coef, give the critic "
                "ppo.critic_warmup_iterations or a trunk of its own (ppo.critic=separate), or use an estimator "
                "without one",
            ),
            "length": (
                self._can_stop and scalars["response/stopped"] == 0.0,
                5,
                "every response has run into the length limit for 5 iterations: the stop token is never sampled. "
                "Raise sampling.response_length, or train the language model on texts that end with EOS",
            ),
        }
        warnings = []
        for name, (holds, patience, text) in signs.items():
            self._in_a_row[name] = self._in_a_row.get(name, 0) + 1 if holds else 0
            if self._in_a_row[name] >= patience and name not in self._given:
                self._given.add(name)
                warnings.append(f"warning: {text}")
        return warnings
