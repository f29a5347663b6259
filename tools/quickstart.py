"""The command `tfppo quickstart`, in a checkout; --help says what it does."""

from tfppo.commands.quickstart import run

if __name__ == "__main__":
    run()
