"""Mutations: what can be wrong in a function, as data, one topic a file."""

from mutations import advantages, inputs, losses, memory, models, native, optimizers, repetition, rewards

TOPICS = (inputs, rewards, advantages, losses, optimizers, repetition, models, memory, native)
MUTATIONS = [mutation for topic in TOPICS for mutation in topic.MUTATIONS]
