"""The command `tfppo train-ppo`, in a checkout; --help says what it does."""

from tfppo.commands.train_ppo import run

if __name__ == "__main__":
    run()
