"""Some hundred made-up requests, as a taste of `benchmarks/http_fuzz.py`, which makes twenty thousand."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.http_world import ScriptedBackend, served

HAS_TOOL = shutil.which("schemathesis", path=str(Path(sys.executable).parent)) is not None


@pytest.mark.skipif(not HAS_TOOL, reason="needs schemathesis")
def test_made_up_requests_get_the_answers_that_the_document_promises() -> None:
    from benchmarks.http_fuzz import fuzz

    with served(ScriptedBackend()) as door:
        count, trouble = fuzz(door.url, examples=2, phases="fuzzing")
    assert not trouble, trouble
    assert count > 20
