"""Two numbers that add up to a given one: many right answers. From -1, nonsense, over -error / 20 to 1, right."""

import re

from tasks.task import Task, byte_model

from tfppo.config import LmConfig

MISTAKES = 0.5


def demonstrations(rng):
    """The second number is often wrong in one of its digits."""
    for _ in range(16_000):
        total = int(rng.integers(20, 200))
        first = int(rng.integers(1, total))
        second = total - first
        if rng.random() < MISTAKES:
            second = max(1, second + int(rng.choice([-10, -2, -1, 1, 2, 10])))
        yield {"prompt": f"{total}=", "response": f"{first}+{second}"}


def closeness(prompts: list[str], responses: list[str]) -> list[float]:
    """1 where the response adds up to the prompt's number, else at most 0."""
    return [_closeness(int(prompt.rstrip("=")), response) for prompt, response in zip(prompts, responses, strict=True)]


def _closeness(total, response):
    found = re.fullmatch(r"(\d{1,3})\+(\d{1,3})", response)
    if not found:
        return -1.0
    error = abs(total - int(found[1]) - int(found[2]))
    return 1.0 if error == 0 else -min(1.0, error / 20)


TASK = Task(
    name="splits",
    kind="several right answers, up to 8 tokens",
    reward="tasks.splits:closeness",
    demonstrations=demonstrations,
    response_length=8,
    max_prompt_tokens=4,
    model=byte_model(positions=32),
    lm=LmConfig(num_steps=500, batch_size=64, learning_rate=2e-3, eval_every=100),
    total_episodes=4096,
)
