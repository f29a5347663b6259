"""The command `tfppo train-reward-model`, in a checkout; --help says what it does."""

from tfppo.commands.train_reward_model import run

if __name__ == "__main__":
    run()
