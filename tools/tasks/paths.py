"""Paths on a directed graph; the length of the shortest one over that of the response, 0 where it is no path.

A prompt names start and goal, `a>k:`, and the response names each node on the way. The demonstrations are random walks,
of which the goal is chosen afterwards among the nodes that they came through.
"""

from collections import deque
from functools import cache

import numpy as np

from tasks.task import Task, byte_model
from tfppo.config import LmConfig

NODES = "abcdefghijklmnop"
LONGEST = 10  # nodes of a path


@cache
def graph() -> dict[str, str]:
    """The nodes that each node leads to: the next one, so that all can be reached, and two others."""
    rng = np.random.default_rng(7)
    successors = {}
    for number, node in enumerate(NODES):
        others = [other for other in NODES if other != node]
        following = NODES[(number + 1) % len(NODES)]
        successors[node] = "".join(sorted({following, *rng.choice(others, 2, replace=False)}))
    return successors


@cache
def shortest(start: str, goal: str) -> int:
    """Nodes of a shortest path, its ends included."""
    waiting, lengths = deque([start]), {start: 1}
    while goal not in lengths:
        node = waiting.popleft()
        for following in graph()[node]:
            if following not in lengths:
                lengths[following] = lengths[node] + 1
                waiting.append(following)
    return lengths[goal]


def demonstrations(rng):
    """Random walks, up to the goal."""
    for _ in range(8000):
        walk = [NODES[rng.integers(len(NODES))]]
        while len(walk) < LONGEST:
            successors = graph()[walk[-1]]
            walk.append(successors[rng.integers(len(successors))])
        goal = walk[rng.integers(1, LONGEST)]
        if goal != walk[0]:
            yield {"prompt": f"{walk[0]}>{goal}:", "response": "".join(walk[: walk.index(goal) + 1])}


def optimality(prompts: list[str], responses: list[str]) -> list[float]:
    """The shortest length over that of the response; 0 where that does not lead from the start to the goal."""
    return [_optimality(prompt[0], prompt[2], path) for prompt, path in zip(prompts, responses, strict=True)]


def _optimality(start, goal, path):
    if path[:1] != start or path[-1:] != goal:
        return 0.0
    if any(after not in graph().get(before, "") for before, after in zip(path, path[1:], strict=False)):
        return 0.0
    return shortest(start, goal) / len(path)


TASK = Task(
    name="paths",
    kind="graded reward, up to 11 tokens",
    reward="tasks.paths:optimality",
    demonstrations=demonstrations,
    response_length=LONGEST + 1,
    max_prompt_tokens=4,
    model=byte_model(positions=32),
    lm=LmConfig(num_steps=300, batch_size=64, learning_rate=2e-3, eval_every=100),
    total_episodes=4096,
)
