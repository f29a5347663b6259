"""Sums of two numbers of two digits; 1 for the right answer, else 0. Short responses, sparse reward.

A third of the demonstrations have a wrong digit, and so have the responses of a language model that learnt from them.
"""

from tasks.task import Task, byte_model
from tfppo.config import LmConfig

MISTAKES = 0.35


def demonstrations(rng):
    """Each pair of numbers three times."""
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)] * 3
    for index in rng.permutation(len(pairs)):
        a, b = pairs[index]
        answer = a + b
        if rng.random() < MISTAKES:
            answer += int(rng.choice([-10, -2, -1, 1, 2, 10]))
        yield {"prompt": f"{a}+{b}=", "response": str(answer)}


def exact(prompts: list[str], responses: list[str]) -> list[float]:
    """1 where the response is the sum."""
    return [float(response == str(_total(prompt))) for prompt, response in zip(prompts, responses, strict=True)]


def _total(prompt):
    return sum(map(int, prompt.rstrip("=").split("+")))


TASK = Task(
    name="sums",
    kind="0/1 reward, 3 tokens",
    reward="tasks.sums:exact",
    demonstrations=demonstrations,
    response_length=4,
    max_prompt_tokens=6,
    model=byte_model(positions=32, width=96),
    lm=LmConfig(num_steps=3500, batch_size=64, learning_rate=2e-3, eval_every=100),
    total_episodes=10_240,
)
