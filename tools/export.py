"""The command `tfppo export`, in a checkout; --help says what it does."""

from tfppo.commands.export import run

if __name__ == "__main__":
    run()
