"""A signal is heard in a thread beside the main one, which goes on meanwhile."""

from tfppo.training.interrupt import Program


class Ended(list):
    """The requests of a program, the last of which ends as soon as it was looked whether there is one."""

    def __len__(self):
        length = super().__len__()
        self.clear()
        return length


def test_a_request_that_ends_while_a_signal_is_heard_is_no_error(monkeypatch):
    program, ends = Program(), []
    monkeypatch.setattr(program, "_end", lambda: ends.append(1))

    class Request:
        def ask(self):
            return True

    program.requests = Ended([Request()])
    program._hear()
    assert ends == []
    program.requests = []
    program._hear()
    assert ends == [1]
