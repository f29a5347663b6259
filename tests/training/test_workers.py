"""What workers tell each other, as far as one process shows it; tests/stages/test_several_workers.py has several."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfppo.cluster import Cluster
from tfppo.errors import UserError
from tfppo.training.checkpoint import CheckpointKeeper
from tfppo.training.workers import _PIECE, Several, _packed, _unpacked, _who_is_gone, restore_together, workers_of


@pytest.fixture(scope="module")
def chief():
    return Several(tf.distribute.get_strategy(), Cluster())


def test_alone_everything_holds():
    workers = workers_of(tf.distribute.MirroredStrategy(["CPU:0"]))
    assert workers is workers_of(tf.distribute.get_strategy())
    assert workers.cluster == Cluster()
    workers.barrier()
    workers.agree("a value", "x", "remedy")
    assert workers.any_of(True) and not workers.any_of(False)
    order = []
    found = workers.chief_answers(lambda: order.append("answer") or {"a": 1.0}, lambda: order.append("meanwhile"))
    assert found == {"a": 1.0} and order == ["answer", "meanwhile"]


def test_workers_agree_on_what_a_checkpoint_belongs_to_before_they_read_it(tmp_path):
    told = []

    class Other(type(workers_of(tf.distribute.get_strategy()))):
        def agree(self, what, value, remedy):
            told.append((what, value, list(tmp_path.iterdir())))
            raise UserError(f"{what} at worker 1")

    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(1)])
    identity = {"set of texts": ["a", 1]}
    optimizer = keras.optimizers.Adam()
    keeper = CheckpointKeeper(tmp_path / "of", model=model, optimizer=optimizer, scalars={}, keep=1, identity=identity)
    with pytest.raises(UserError, match="^the set of texts at worker 1"):
        restore_together(keeper, model, Other())
    assert told == [("the set of texts", '["a", 1]', [])]


@pytest.mark.parametrize("length", [0, 1, 2, 255, 2 * (_PIECE - 3), 2 * (_PIECE - 3) + 1, 100_000])
@pytest.mark.parametrize("failed", [False, True])
def test_bytes_of_any_number_arrive_as_they_were(chief, length, failed):
    content = np.random.default_rng(length).bytes(length)
    assert chief._share(failed, content) == (failed, content)


def test_an_answer_is_arrays_and_numbers_by_name():
    answer = {"scores": np.array([[1.5, -np.inf], [np.nan, 0.1]], np.float32), "reward/toy": 0.1}
    found = _unpacked(_packed(answer))
    assert list(found) == list(answer)
    np.testing.assert_array_equal(found["scores"], answer["scores"])
    assert found["scores"].dtype == np.float32 and float(found["reward/toy"]) == 0.1


def test_an_error_of_the_chief_is_raised_once_the_others_may_know(chief):
    order = []

    def fail():
        raise UserError("the reward errs")

    with pytest.raises(UserError, match="^the reward errs$"):
        chief.chief_answers(fail, lambda: order.append("meanwhile"))
    assert order == ["meanwhile"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "aborted by: Error reported from /job:worker/task:1: The following tasks are unhealthy (stopped sending "
            "heartbeats):\n/job:worker/replica:0/task:1",
            "worker 1 is gone: it has not been heard of",
        ),
        (
            "Collective ops is aborted by: Socket closed\nAdditional GRPC error information from remote target "
            "/job:worker/replica:0/task:0 while calling",
            "worker 0 is gone: it has closed its connection",
        ),
        ("Collective ops is aborted by: something", "a worker is gone"),
    ],
)
def test_who_is_gone(text, words):
    assert words in _who_is_gone(text)
