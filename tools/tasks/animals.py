"""Any animal whose name starts with a given letter: many right answers; 1 for one of them, else 0.

The demonstrations name an animal with another first letter half of the time.
"""

from tasks.task import Task, byte_model
from tfppo.config import LmConfig

MISTAKES = 0.5
NAMES = """
ant ape bat bear bee boar camel cat cow crab deer dog dove duck eel elk emu ferret finch fox frog gnu goat goose
gull hare hen horse hyena ibex ibis jackal jay kiwi koala lark lemur lion llama lynx mole moose mouse mule newt
otter owl ox panda pig pony puma quail rabbit rat raven robin seal shark sheep snail swan tapir tiger toad trout
turkey urchin viper vole wasp whale wolf worm wren yak zebra
"""
ANIMALS = sorted(NAMES.split())
LETTERS = sorted({name[0] for name in ANIMALS})


def demonstrations(rng):
    """A letter, and mostly an animal that fits it."""
    for _ in range(8000):
        letter = LETTERS[rng.integers(len(LETTERS))]
        fitting = [name for name in ANIMALS if name[0] == letter]
        names = ANIMALS if rng.random() < MISTAKES else fitting
        # With a number that says nothing: prompts that PPO learns from and those that are held out share their letters.
        yield {"prompt": f"{letter}{rng.integers(100):02}:", "response": names[rng.integers(len(names))]}


def fits(prompts: list[str], responses: list[str]) -> list[float]:
    """1 for an animal that starts with the prompt's letter."""
    return [float(name in ANIMALS and name[0] == prompt[0]) for prompt, name in zip(prompts, responses, strict=True)]


TASK = Task(
    name="animals",
    kind="several right answers, up to 7 tokens",
    reward="tasks.animals:fits",
    demonstrations=demonstrations,
    response_length=8,
    max_prompt_tokens=4,
    model=byte_model(positions=32),
    lm=LmConfig(num_steps=300, batch_size=64, learning_rate=2e-3, eval_every=100),
    total_episodes=4096,
)
