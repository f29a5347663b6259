"""Which steps are in a profile."""

import pytest
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from tfppo.training.profiling import Profiler


def recorded_steps(folder):
    """The numbers of the steps in each profile of a log."""
    profiles = []
    for file in sorted(folder.glob("plugins/profile/*/*.xplane.pb")):
        space = xplane_pb2.XSpace.FromString(file.read_bytes())
        numbers = set()
        for plane in space.planes:
            names = {number: data.name for number, data in plane.stat_metadata.items()}
            for line in plane.lines:
                for event in line.events:
                    if plane.event_metadata[event.metadata_id].name == "step":
                        numbers |= {s.int64_value for s in event.stats if names[s.metadata_id] == "step_num"}
        profiles.append(sorted(numbers))
    return profiles


@pytest.mark.parametrize(
    ("asked", "steps", "recorded"), [(2, 5, [[2, 3]]), (2, 2, [[2]]), (2, 1, []), (0, 5, []), (1, 3, [[2]])]
)
def test_the_steps_from_the_second_on_are_recorded(tmp_path, asked, steps, recorded):
    double = tf.function(lambda x: 2.0 * x)
    with Profiler(tmp_path, asked) as profiler:
        for _ in range(steps):
            profiler.begins()
            double(tf.constant(1.0))
    assert recorded_steps(tmp_path) == recorded


def test_a_training_that_fails_leaves_its_profile(tmp_path):
    with pytest.raises(RuntimeError), Profiler(tmp_path, 5) as profiler:
        for _ in range(3):
            profiler.begins()
        raise RuntimeError
    assert recorded_steps(tmp_path) == [[2, 3]]
