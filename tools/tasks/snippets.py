"""Movie-review sentences, to speak well of films: the quickstart's task with a smaller model. A large vocabulary."""

from tasks.task import Task
from tfppo.config import LmConfig, ModelConfig

TASK = Task(
    name="snippets",
    kind="sentiment, 16 tokens of 4,096",
    reward="tfppo.rewards.vader:vader_sentiment",
    demonstrations=None,
    response_length=16,
    max_prompt_tokens=8,
    model=ModelConfig(
        vocabulary_size=4096,
        num_layers=2,
        num_heads=2,
        hidden_dim=96,
        intermediate_dim=384,
        max_sequence_length=32,
        dropout=0.0,
    ),
    lm=LmConfig(num_steps=300, batch_size=64, learning_rate=3e-3, eval_every=100),
    total_episodes=3072,
)
