"""Pictures of a run."""

from pathlib import Path


def plot_reward_over_kl(rows: list[dict], path: Path | str, *, smoothing: int = 8) -> None:
    """Writes a PNG of the reward over the KL to the reference, coloured by iteration, and of both over episodes.

    Args: rows: of a run's JSONL record; smoothing: iterations a running mean is taken over.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    steps = np.array([row["step"] for row in rows])
    reward, kl = (np.array([row[tag] for row in rows]) for tag in ("objective/score", "objective/kl"))
    width = max(1, min(smoothing, len(rows)))

    def smooth(values):
        return np.convolve(values, np.ones(width) / width, mode="valid")

    figure, (frontier, curves) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    frontier.scatter(kl, reward, c=steps, s=12, alpha=0.35, cmap="viridis")
    line = frontier.scatter(smooth(kl), smooth(reward), c=steps[width - 1 :], s=26, cmap="viridis")
    frontier.set(xlabel="KL to the reference (nats a response)", ylabel="reward", title="What a nat buys")
    figure.colorbar(line, ax=frontier, label="iteration")
    curves.plot(steps[width - 1 :], smooth(reward), color="tab:blue")
    curves.set(xlabel="iteration", title=f"Training (mean of {width} iterations)")
    curves.set_ylabel("reward", color="tab:blue")
    right = curves.twinx()
    right.plot(steps[width - 1 :], smooth(kl), color="tab:orange")
    right.set_ylabel("KL (nats a response)", color="tab:orange")
    for axes in (frontier, curves):
        axes.grid(alpha=0.3)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
