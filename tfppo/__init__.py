"""PPO fine-tuning of Transformer language models in TensorFlow and Keras."""

__version__ = "0.1.0"
