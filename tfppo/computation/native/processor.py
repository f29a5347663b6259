"""The processor of this machine, for what is kept for it alone. It starts no TensorFlow."""

import platform
from pathlib import Path


def processor() -> str:
    """A text that differs between processors with different instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
