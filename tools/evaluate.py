"""The command `tfppo evaluate`, in a checkout; --help says what it does."""

from tfppo.commands.evaluate import run

if __name__ == "__main__":
    run()
