"""A mutation, and how it is applied to the text of its file."""

from typing import NamedTuple

from mutations import cpp, operators


class Mutation(NamedTuple):
    """Something wrong in one function, and the tests that are to notice."""

    name: str
    file: str  # below tfppo/
    function: str  # its qualified name in Python, its name in C++
    operators: list  # of operators.py or cpp.py, applied one after the other
    tests: str

    @property
    def is_cpp(self) -> bool:
        """Whether the native operations have to be compiled anew."""
        return not self.file.endswith(".py")

    def applied(self, source):
        """The file's text with the mutation. Raises: LookupError where it does not fit; the message names it."""
        language = cpp if self.is_cpp else operators
        try:
            for operator in self.operators:
                source = language.apply_to_function(source, self.function, operator)
        except LookupError as error:
            raise LookupError(f"{self.name} does not fit tfppo/{self.file}: {error}") from None
        return source
