"""An engine here that answers a batch: without Ray, and without a supervisor."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

from actors.model_choice import ModelChoice, function_at
from actors.model_loading import read_adapter
from deploy.jobs.inline_answers import InlineAnswers
from deploy.jobs.serving import Serving
from engine.adapter import Adapter
from engine.engine import Engine


@contextmanager
def inline(choice: ModelChoice) -> Iterator[Serving]:
    """An engine on a thread of this process, which costs no other process anything, and ends with this one."""

    def make() -> tuple[Engine, dict[str, Adapter]]:
        engine: Engine = function_at(choice.make_engine)(choice)
        return engine, {name: read_adapter(path, engine.model) for name, path in choice.adapters}

    with closing(InlineAnswers(make, function_at(choice.make_tokenizer)(choice))) as answers:
        yield Serving(answers, choice, tuple(name for name, _ in choice.adapters))
