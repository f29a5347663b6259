"""The stage that exports a model for serving."""

import json
from pathlib import Path

from absl import logging

from tfppo.config import Config
from tfppo.models.folder import load_policy
from tfppo.serving.export import export_policy


def export_model(config: Config, folder: Path, model_folder: Path | str) -> Path:
    """Exports the model in a folder as the next version under WORKDIR/export."""
    policy, tokenizer = load_policy(model_folder)
    path = export_policy(policy, tokenizer, config.sampling.for_readers(), folder / "export")
    logging.info("exported to %s", path)
    return path


def loading_snippet(path: Path) -> str:
    """Lines of Python that load a SavedModel and continue a prompt, indented."""
    return f"""\
    import tensorflow as tf
    model = tf.saved_model.load({json.dumps(str(path))})
    model.signatures["generate"](prompt=tf.constant(["The film is"]))["completion"]"""
