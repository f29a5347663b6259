"""KL estimators and the adaptive KL coefficient of Ziegler et al. 2019."""

import math


def kl_file():
    """KL estimators, also far out, and the adaptive coefficient."""
    log_ratios = [0.5, -0.5, 0.0, 1.0, -1.0, 1 / 64, -1 / 64, 2.0**-12, -(2.0**-12), 5.0, -5.0, 19.0, -19.0]
    extremes = [25.0, -25.0, 1000.0, -1000.0]
    bounded = [min(max(d, -20.0), 20.0) for d in extremes]
    table = [12.0, 6.6, 6.0, 4.8, 3.0, 0.0, -1.0]

    def next_coef(coef, kl, target, horizon, episodes):
        error = kl / target - 1
        error = 0.2 if error > 0.2 else -0.2 if error < -0.2 else error
        return coef * (1 + error * episodes / horizon)

    # A policy whose KL falls as the coefficient rises: it has to arrive at the target.
    coef, coefs, kls = 0.15, [], []
    for _ in range(50):
        kls.append(3.0 / coef**0.5)
        coef = next_coef(coef, kls[-1], 6.0, 2000, 512)
        coefs.append(coef)
    return {
        "log_ratios": log_ratios,
        "k1": log_ratios,
        "k2": [d * d / 2 for d in log_ratios],
        "k3": [math.exp(-d) - 1 + d if abs(d) > 0.01 else d**2 / 2 - d**3 / 6 + d**4 / 24 for d in log_ratios],
        "abs": [abs(d) for d in log_ratios],
        "extremes": extremes,
        "k3_of_extremes": [math.exp(-d) - 1 + d for d in bounded],
        "table": {"kl": table, "coef": [next_coef(0.15, kl, 6.0, 10000, 512) for kl in table]},
        "closed_loop": {"kl": kls, "coef": coefs, "target": 6.0, "horizon": 2000, "num_episodes": 512},
    }
