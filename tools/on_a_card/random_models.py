"""Language models with random weights and texts to train on, for steps that time real commands.

    python tools/on_a_card/random_models.py '{"folder": "F", "models": {"NAME": {"num_layers": 4, ...}}}'

Leaves the models F/NAME and the texts F/texts.txt, and prints the seconds that each model took.
"""

import dataclasses
import json
import random
import sys
import time
from pathlib import Path

LINES, WORDS = 400, 60


def main(text):
    """Makes what the JSON asks for."""
    how = json.loads(text)
    folder = Path(how["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    write_texts(folder / "texts.txt")
    print(json.dumps({"seconds": {name: make(folder / name, sizes) for name, sizes in how["models"].items()}}))


def write_texts(path):
    """Sentences of random words, each of some hundred letters: prompts are their first tokens."""
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"

    def word():
        return "".join(draw.choices(letters, k=draw.randint(2, 9)))

    path.write_text("".join(" ".join(word() for _ in range(WORDS)) + "\n" for _ in range(LINES)))


def make(folder, sizes):
    """Saves a language model of these sizes; seconds."""
    from tfppo.stages.start import start_tensorflow

    start_tensorflow()
    from tfppo.models.folder import save_model
    from tfppo.models.language_model import LanguageModel
    from tfppo.planning.benchmark import make_tokenizer
    from tfppo.planning.costs import model_of_sizes

    started = time.perf_counter()
    tokenizer = make_tokenizer(sizes["vocabulary_size"])
    model = model_of_sizes(**sizes)
    save_model(LanguageModel(**dataclasses.asdict(model), pad_id=tokenizer.pad_id), tokenizer, folder)
    return time.perf_counter() - started


if __name__ == "__main__":
    main(sys.argv[1])
