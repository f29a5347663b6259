"""Writes the numbers that tests/parity compares tfppo with.

    python tools/make_parity_fixtures.py

The numbers come from tests/parity/independent, which never imports tfppo. It needs PyTorch
(pip install torch==2.13.0 numpy absl-py, in an environment of its own). Running it again gives the same bytes. Inputs
are multiples of 1/64 or float32 numbers, so that float32 code starts from exactly the same ones.
"""

import json
import sys
from pathlib import Path

import numpy as np
from absl import app, flags

PARITY = Path(__file__).resolve().parents[1] / "tests" / "parity"

OUTPUT = flags.DEFINE_string("output", str(PARITY / "fixtures"), "Folder of the JSON files.")


def files():
    """{name of a file: what computes its content}; PyTorch is imported here, so that --help does without."""
    sys.path.insert(0, str(PARITY))
    from independent import advantages, kl, losses, optimizers, rewards, updates

    return {
        "advantages": advantages.advantages_file,
        "whitening": advantages.whitening_file,
        "kl": kl.kl_file,
        "rewards": rewards.rewards_file,
        "losses": losses.losses_file,
        "optimizers": optimizers.optimizers_file,
        "updates": updates.updates_file,
    }


def plain(value):
    """Nested lists of numbers, floats to ten digits."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.10g}") + 0.0  # -0.0 becomes 0.0
    return value


def main(argv):
    if len(argv) > 1:
        raise app.UsageError("this program takes flags only")
    import torch

    torch.set_num_threads(1)
    folder = Path(OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    for name, compute in files().items():
        content = {"made_with": {"numpy": np.__version__, "torch": torch.__version__.partition("+")[0]}, **compute()}
        lines = [f"{json.dumps(key)}:{json.dumps(plain(part), separators=(',', ':'))}" for key, part in content.items()]
        path = folder / f"{name}.json"
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    app.run(main)
