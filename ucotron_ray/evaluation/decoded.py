"""A decoded answer as a prediction. The same for bundles and for models of transformers."""

from ucotron_ray.evaluation.predictions import Prediction
from ucotron_ray.evaluation.token_confidence import pieces, token_confidence
from ucotron_ray.models.decoding import Answer
from ucotron_ray.models.speech import Speech

Question = tuple[int, str]
"""Row index and layout."""


def prediction(speech: Speech, question: Question, answer: Answer) -> Prediction:
    """An answer that is over. Tokens that the grammar forced count as sure: there was nothing to choose."""
    text = speech.finished(answer)
    sure = token_confidence(text, pieces(speech.text, answer.tokens, text), answer.logprobs)
    return Prediction(*question, text, len(answer.tokens), answer.reason == "length", sure)
