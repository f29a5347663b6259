"""How the program was called, for commands that are printed to be typed next."""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

# The name of a flag that says which run it is; `setting` is "section.field".
_OF_THE_RUN = re.compile(r"--?(?:no)?(?P<name>config\.(?P<setting>[^=]+)|config|workdir)(?:=.*)?", re.DOTALL)
_PLAIN = re.compile(r"[\w@%+=:,./-]+")


class Invocation:
    """A call of the program: of a file of tools/, or of the command `tfppo`.

    Args: argv: the program and its arguments as they were typed, without the name of a subcommand.
    """

    def __init__(self, argv: Sequence[str]):
        self.program, self.arguments = Path(argv[0]), list(argv[1:])

    def named(self, command: str) -> str:
        """A command of tfppo, as it is typed in this place."""
        if self.program.suffix != ".py" or self.program.name == "__main__.py":
            return f"tfppo {command}"
        python = Path(sys.executable or "python").name
        return f"{python} {quote(str(self.program.with_name(command.replace('-', '_') + '.py')))}"

    def whole(self, command: str) -> str:
        """This call, which is one of a command of tfppo, as it was typed."""
        return " ".join([self.named(command), *map(quote, self.arguments)])

    def adapted(self, line: str) -> str:
        """An indented line of documentation that begins with a command of tfppo, as it is typed in this place."""
        return re.sub(r"^( +)tfppo ([a-z-]+)", lambda match: match[1] + self.named(match[2]), line)

    def next(self, command: str, *more: str, uses: Sequence[str] = ("",), without: Sequence[str] = ()) -> str:
        """A command on the same run: with its --workdir, --config and settings, then further arguments.

        Args: uses, without: starts of settings (such as "data.") that the next command has a use for, by default all,
            and of those among them that it is not to have.
        """
        kept = [
            argument
            for setting, argument in self._of_the_run()
            if setting is None or setting.startswith(tuple(uses)) and not setting.startswith(tuple(without))
        ]
        return " ".join([self.named(command), *map(quote, [*kept, *more])])

    def _of_the_run(self):
        """The arguments that say which run it is, each as (setting or None, argument): the last value of each flag.

        An argument is one word: --workdir FOLDER becomes --workdir=FOLDER.
        """
        found, position = {}, 0
        while position < len(self.arguments):
            argument, following = self.arguments[position], self.arguments[position + 1 : position + 2]
            position += 1
            if "=" not in argument and following and not re.match(r"--?[a-z]", following[0]):
                argument = f"{argument}={following[0]}"
                position += 1
            if match := _OF_THE_RUN.fullmatch(argument):
                found[match["name"]] = (match["setting"], argument)
        return list(found.values())


def quote(argument: str) -> str:
    """An argument as a shell takes it; a value with single quotes in it stays readable."""
    name, equals, value = argument.partition("=")
    if "'" in value and _PLAIN.fullmatch(name) and not set('"$`\\!') & set(value):
        return f'{name}{equals}"{value}"'
    return argument if _PLAIN.fullmatch(argument) else shlex.quote(argument)
