"""What model servers and request servers load, where a program or a test names its own."""

from actors.asking import ask_of, request_of
from actors.model_choice import ModelChoice
from actors.tokenizer_loading import ByteTokenizer, bytes_tokenizer
from engine.limits import Capacity


def test_a_text_is_its_bytes_where_there_is_no_tokenizer() -> None:
    tokenizer = bytes_tokenizer(ModelChoice("made up"))
    assert isinstance(tokenizer, ByteTokenizer)
    request = request_of(ask_of("one", {"prompt": "caf\u00e9"}), tokenizer, Capacity(300, 100), 4, ())  # type: ignore[arg-type]
    assert bytes(request.prompt).decode() == "caf\u00e9"
