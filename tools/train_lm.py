"""The command `tfppo train-lm`, in a checkout; --help says what it does."""

from tfppo.commands.train_lm import run

if __name__ == "__main__":
    run()
