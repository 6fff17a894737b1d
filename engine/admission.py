"""Admission: a request becomes sequences, one for each choice, or one that will part into them."""

from engine.answer import AnswerState
from engine.blocks import Digest
from engine.config import ModelConfig
from engine.limits import some_token_remains
from engine.refusal import BadRequest
from engine.request import Request
from engine.sequence import Sequence, seed_of
from engine.vocabulary import Vocabulary


def end_ids(request: Request, config: ModelConfig) -> frozenset[int]:
    """The tokens that end an answer."""
    of_model = () if request.sampling.ignore_eos else config.eos_token_ids
    return frozenset((*of_model, *request.sampling.stop_token_ids))


def check_endings(request: Request, config: ModelConfig) -> None:
    """While `min_tokens` forbids an ending, something else must remain to be chosen."""
    sampling = request.sampling
    if sampling.min_tokens and not some_token_remains(sampling, config.vocab_size, end_ids(request, config)):
        raise BadRequest("min_tokens forbids an ending, and nothing else is left to choose", "min_tokens")


def sequences_of(
    request: Request, config: ModelConfig, vocabulary: Vocabulary | None, arrival: int, root: Digest
) -> list[Sequence]:
    """A fresh request is one sequence, whose choices part where the prompt ends; a resumed one is all its choices.

    The vocabulary is given where stop strings need it.
    """
    answers = request.resumed or ((),)
    return [
        Sequence(
            request=request,
            choice=choice,
            seed=seed_of(request),
            end_ids=end_ids(request, config),
            arrival=arrival,
            tokens=[*request.prompt, *answer],
            num_prompt=len(request.prompt),
            max_length=len(request.prompt) + request.sampling.max_tokens,
            root=root,
            vocabulary=vocabulary,
            answer=answer_state(request, vocabulary, answer),
            has_started=choice > 0,
            has_scored_prompt=choice > 0 or any(request.resumed),  # scores come with the first token
            is_forking=not request.resumed and request.sampling.n > 1,
        )
        for choice, answer in enumerate(answers)
    ]


def answer_state(request: Request, vocabulary: Vocabulary | None, answer: tuple[int, ...]) -> AnswerState | None:
    """What the answer so far reads, if stop strings have to be watched for."""
    if vocabulary is None:
        return None
    state = vocabulary.begin(request.sampling.stop, request.prompt, request.sampling.min_tokens)
    for token in answer:
        state, _ = state.step(vocabulary.bytes_of(token))
    return state
