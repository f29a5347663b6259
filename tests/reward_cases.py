"""What the tests of rewards share: a batch of texts with a token a byte."""

import numpy as np

from tfppo.data.prompts import pad_left
from tfppo.data.tokenizer import Tokenizer
from tfppo.rewards.batch import Batch

EOS, FIRST_BYTE = 1, 2


def make_batch(prompts=("first", "second"), responses=("one", "two\nlines"), ended=None, room=10, columns=None):
    """A batch of texts with a token a byte; `ended` responses (the first one alone) have a stop token."""
    ended = ended or (True, *[False] * (len(responses) - 1))
    ids, mask = np.zeros([2, len(responses), room], np.int32)
    for row, (response, end) in enumerate(zip(responses, ended, strict=True)):
        tokens = [FIRST_BYTE + byte for byte in response.encode()] + [EOS] * end
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    rows = [[EOS, *(FIRST_BYTE + byte for byte in prompt.encode())] for prompt in prompts]
    prompt_ids = pad_left(rows, 0, 8)
    mask = mask.astype(np.float32)
    return Batch(list(prompts), list(responses), prompt_ids, ids, mask, Tokenizer([]), columns or {})
