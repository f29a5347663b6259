"""Digests of the weights that a training left."""

import hashlib
import io
import zipfile

import h5py
import numpy as np


def weights_digest(folder):
    """SHA-256 over names and bytes of every array of a model file, read by h5py from the archive in it."""
    digest, count = hashlib.sha256(), 0
    with zipfile.ZipFile(folder / "model.keras") as archive, io.BytesIO(archive.read("model.weights.h5")) as data:
        arrays = {}
        with h5py.File(data) as file:
            file.visititems(lambda name, item: arrays.update({name: item[()]}) if hasattr(item, "dtype") else None)
        for name in sorted(arrays):
            digest.update(name.encode() + np.asarray(arrays[name]).tobytes())
            count += 1
    assert count > 20
    return digest.hexdigest()
