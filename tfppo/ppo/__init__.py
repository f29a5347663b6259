"""PPO, to be read in this order: sampling, rollout, targets, loss, learner, trainer."""
