"""The command `tfppo estimate`, in a checkout; --help says what it does."""

from tfppo.commands.estimate import run

if __name__ == "__main__":
    run()
