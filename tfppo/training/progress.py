"""Progress bars."""

from tqdm import tqdm


def progress_bar(*, total: int, done: int = 0, description: str) -> tqdm:
    """A progress bar over steps, with the time left; `set_postfix` shows figures of the last step."""
    return tqdm(total=total, initial=done, desc=description, dynamic_ncols=True, mininterval=0.5, smoothing=0.1)
