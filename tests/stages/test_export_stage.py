"""What an export says of its use."""

import textwrap

import tensorflow as tf

from tfppo.stages.export import loading_snippet


def test_the_lines_to_load_a_model_run(tmp_path):
    folder = tmp_path / "a 'quoted' run"
    module = tf.Module()
    module.generate = tf.function(
        lambda prompt: {"completion": prompt + "!"}, input_signature=[tf.TensorSpec([None], tf.string, name="prompt")]
    )
    tf.saved_model.save(module, str(folder), signatures={"generate": module.generate})
    *lines, last = textwrap.dedent(loading_snippet(folder)).splitlines()
    names = {}
    exec("\n".join(lines), names)
    assert eval(last, names).numpy().tolist() == [b"The film is!"]
