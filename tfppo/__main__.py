"""`python -m tfppo` is the command `tfppo`."""

from tfppo.commands.main import main

if __name__ == "__main__":
    main()
