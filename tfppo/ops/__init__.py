"""Pure tensor functions of the algorithm: no Keras object, no config, no tf.function."""
