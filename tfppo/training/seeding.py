"""Seeds of Keras' own generators."""

import keras
import numpy as np

from tfppo.ops.seeds import seed_for


def set_keras_seed(seed: int, purpose: str) -> None:
    """Makes the weights that Keras draws next a function of the root seed and their purpose alone."""
    keras.utils.set_random_seed(int(seed_for(seed, purpose)[0].astype(np.uint32)))
