"""train_ppo.py on a card that TensorFlow takes for two."""

import tensorflow as tf

from tfppo.commands.train_ppo import run

half = tf.config.LogicalDeviceConfiguration(memory_limit=4096)
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("GPU")[0], [half, half])
run()
