"""What several test files share and what is slow to make."""

from pathlib import Path

import pytest
from hypothesis import settings

from loaders.progress import ignore_progress
from loaders.sources import locate

settings.register_profile("genserve", deadline=None)  # a busy machine is not a failure
settings.load_profile("genserve")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The default model's GGUF file."""
    return locate("smollm2", ignore_progress)
