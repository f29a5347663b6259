"""The command `tfppo benchmark`, in a checkout; --help says what it does."""

from tfppo.commands.benchmark import run

if __name__ == "__main__":
    run()
