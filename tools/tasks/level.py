"""Up and down, 48 times, to a level and there to stay: long responses with a reward for each token.

A prompt names the level at the start and the one to reach, `2>7:`; tokens are u, d and s (stay). Each token gets 1 / 48
for the right level, less the further from it.
"""

from tasks.task import Task, byte_model
from tfppo.config import LmConfig

LENGTH = 48
MISTAKES = 0.75
STEPS = {"u": 1, "d": -1, "s": 0}


def demonstrations(rng):
    """The right step, or at random any one."""
    for _ in range(3000):
        level, goal = (int(rng.integers(10)) for _ in range(2))
        prompt, steps = f"{level}>{goal}:", ""
        for _ in range(LENGTH):
            step = "s" if level == goal else "u" if level < goal else "d"
            if rng.random() < MISTAKES:
                step = "uds"[rng.integers(3)]
            steps, level = steps + step, level + STEPS[step]
        yield {"prompt": prompt, "response": steps}


def nearness(prompts: list[str], responses: list[str], tokens: list[list[str]]) -> list[list[float]]:
    """A reward for each token: 1 at the goal, 0 at a distance of 3 or more or for what is no step; over 48."""
    return [_nearness(int(prompt[0]), int(prompt[2]), row) for prompt, row in zip(prompts, tokens, strict=True)]


def _nearness(level, goal, tokens):
    scores = []
    for token in tokens:
        level += STEPS.get(token, 0)
        scores.append(max(0.0, 1.0 - abs(level - goal) / 3) / LENGTH if token in STEPS else 0.0)
    return scores


TASK = Task(
    name="level",
    kind="a reward a token, 48 tokens",
    reward="tasks.level:nearness",
    demonstrations=demonstrations,
    response_length=LENGTH,
    max_prompt_tokens=4,
    model=byte_model(positions=64),
    lm=LmConfig(num_steps=1500, batch_size=32, learning_rate=2e-3, eval_every=100),
    total_episodes=3072,
)
