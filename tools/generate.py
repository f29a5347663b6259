"""The command `tfppo generate`, in a checkout; --help says what it does."""

from tfppo.commands.generate import run

if __name__ == "__main__":
    run()
