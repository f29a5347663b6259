"""What varies over the steps and replicas of language-model training."""

import types

import numpy as np
import tensorflow as tf

from tfppo.config import LmConfig
from tfppo.data.packing import pack
from tfppo.data.tokenizer import Tokenizer
from tfppo.lm.trainer import LmTrainer
from tfppo.models.language_model import LanguageModel
from tfppo.training import programs
from tfppo.training.programs import CompiledProgram
from tfppo.training.replicas import make_strategy

STEPS = 4


def make_trainer(folder, num_layers=1, dropout=0.5):
    """Eight sequences of eight different tokens, two a step."""
    config = LmConfig(num_steps=STEPS, batch_size=2, learning_rate=1.0, warmup_steps=1, schedule="linear", eval_every=9)
    packed = pack([([*range(9 * n, 9 * n + 9)], 0) for n in range(8)], 8)
    strategy = make_strategy(1)
    with strategy.scope():
        model = LanguageModel(80, num_layers, 2, 8, 16, 8, dropout=dropout)
    return LmTrainer(config, 0, model, Tokenizer([]), packed, packed, 64, strategy, folder)


def test_every_step_has_sequences_dropout_and_a_rate_of_its_own(tmp_path, monkeypatch):
    trainer, steps = make_trainer(tmp_path), []

    def update(batch, seed):
        steps.append((batch.inputs.tobytes(), tuple(seed), trainer.optimizer.learning_rate.numpy()))
        return 1.0, 1.0

    monkeypatch.setattr(trainer, "_update", update)
    monkeypatch.setattr(trainer, "held_out", lambda: dict(loss=1.0, perplexity=1.0, word_perplexity=1.0))
    trainer.train()
    batches, seeds, rates = zip(*steps, strict=True)
    assert len(set(batches)) == len(set(seeds)) == STEPS
    np.testing.assert_allclose(rates, [1.0, 1.0, 2 / 3, 1 / 3], rtol=1e-6)  # one step of warm-up


def test_every_replica_drops_out_by_a_seed_of_its_own(tmp_path, monkeypatch):
    trainer, seeds, rows = make_trainer(tmp_path), [], []

    def gradients(batch, num_tokens, seed):
        seeds.append(tuple(seed.numpy()))
        rows.append(batch.inputs.numpy().tobytes())

    monkeypatch.setattr(trainer, "_gradients", gradients)
    batch = trainer.batch(0)
    for replica in range(2):
        context = types.SimpleNamespace(num_replicas_in_sync=2, replica_id_in_sync_group=replica)
        monkeypatch.setattr(tf.distribute, "get_replica_context", lambda context=context: context)
        trainer._replica_gradients(tf.nest.map_structure(tf.constant, batch), 16.0, np.array([3, 4], np.int32))
    assert len(set(seeds)) == len(set(rows)) == 2


def test_on_a_gpu_a_step_is_one_program_and_the_same(tmp_path, monkeypatch):
    weights = []  # without dropout, whose numbers XLA draws in another way
    for on_gpu in (False, True):
        monkeypatch.setattr(programs, "has_gpu", lambda on_gpu=on_gpu: on_gpu)
        trainer = make_trainer(tmp_path / str(on_gpu), num_layers=2, dropout=0.0)
        rng = np.random.default_rng(0)
        trainer.model.set_weights([rng.normal(0.0, 0.3, weight.shape) for weight in trainer.model.get_weights()])
        trainer.optimizer.learning_rate.assign(0.01)
        assert isinstance(trainer._step, CompiledProgram) is on_gpu
        for step in range(2):
            loss, norm = trainer._update(trainer.batch(step), np.array([3, step], np.int32))
        # A key's bias changes no attention: its gradient is rounding, which Adam makes as large as any other.
        kept = [variable.numpy() for variable in trainer.model.variables if not variable.path.endswith("qkv/bias")]
        weights.append([*kept, loss.numpy(), norm.numpy()])
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)
