"""TensorBoard's event files, written in the calling thread: an error is that of the call, and no thread's traceback."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto import event_pb2
from tensorboard.summary.writer.record_writer import RecordWriter


class EventFile:
    """A new event file in a folder, which is made where it is missing. Raises: OSError where it cannot be written."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._file = RecordWriter((folder / name).open("wb"))
        self.add(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, event: event_pb2.Event) -> None:
        """Writes an event."""
        self._file.write(event.SerializeToString())

    def flush(self) -> None:
        """Writes what is buffered."""
        self._file.flush()

    def close(self) -> None:
        """Writes what is buffered, and closes the file."""
        self._file.close()


def event_files(folder: Path) -> list[Path]:
    """The event files of a folder, in the order in which they were begun."""
    return sorted(folder.glob("events.out.tfevents.*"))


def read_events(path: Path) -> Iterator[event_pb2.Event]:
    """The events of a file that hold summaries, up to a truncated or damaged record."""
    for record in RawEventFileLoader(str(path)).Load():
        event = event_pb2.Event.FromString(record)
        if event.HasField("summary"):
            yield event
