"""A batch on a system of processes, on a real cluster: killed anywhere, it comes to the same texts, each once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.batch_chaos import disturbed, prompts, texts, tiny_model, undisturbed
from tests.batches import write_lines
from tests.ray_cluster import Cluster, started_cluster

pytestmark = pytest.mark.ray
NUM_LINES = 400


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with started_cluster(has_jobs=False) as started:
        yield started


def test_models_and_the_batch_are_killed_and_every_line_has_its_one_right_answer(
    cluster: Cluster, tmp_path: Path
) -> None:
    model = tiny_model(tmp_path)
    source = write_lines(tmp_path / "in.jsonl", prompts(NUM_LINES))
    expected = undisturbed(source, tmp_path / "undisturbed.jsonl", model)
    came_to = disturbed(cluster, source, tmp_path / "out.jsonl", model, NUM_LINES, model_kills=2, batch_kills=1)
    assert (came_to.model_kills, came_to.batch_kills, came_to.exit_code) == (2, 1, 0)
    assert len(expected) == NUM_LINES
    assert texts(tmp_path / "out.jsonl") == expected
