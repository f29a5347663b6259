"""Sentiment by the VADER lexicon (Hutto and Gilbert 2014): the default reward."""

import functools
from collections.abc import Sequence


@functools.cache
def _analyzer():
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def vader_sentiment(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Compound sentiment of each response, from -1 (most negative) to 1 (most positive); prompts are ignored."""
    return [_analyzer().polarity_scores(response)["compound"] for response in responses]
