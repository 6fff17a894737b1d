"""Clients that others wrote: langchain, litellm, the llm command, lm-eval."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.checks.table import MESSAGES, SECONDS, Target, feature, refusal
from engine.engine import Engine
from engine.kernels.choose import choose
from loaders.checkpoint import load_model
from tests.engines import score_of


@feature("langchain-openai", "invoke, stream, go on with a conversation")
def _(target: Target) -> None:
    from langchain_openai import ChatOpenAI

    words: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "timeout": SECONDS, "max_retries": 0}
    model = ChatOpenAI(base_url=target.base, api_key="none", model=target.model, **words)
    whole = model.invoke([("human", "Hi")])
    assert "".join(part.content for part in model.stream([("human", "Hi")])) == whole.content
    assert whole.usage_metadata["output_tokens"] > 0
    assert model.invoke([("human", "Hi"), whole, ("human", "And?")]).response_metadata["finish_reason"]


@feature("litellm", "completion, stream, its own errors")
def _(target: Target) -> None:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm

    words: dict[str, Any] = {"api_base": target.base, "api_key": "none", "max_tokens": 8, "temperature": 0}
    words |= {"model": f"openai/{target.model}", "messages": MESSAGES, "timeout": SECONDS}
    whole = litellm.completion(**words)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in litellm.completion(**words, stream=True))
    assert text == whole.choices[0].message.content
    bad = {**words, "temperature": -1}
    refusal(litellm.BadRequestError, lambda: litellm.completion(**bad), "a bad value was no BadRequestError")


@feature("llm (the command)", "prompt, streamed and not")
def _(target: Target) -> None:
    with tempfile.TemporaryDirectory() as directory:
        entry = {"model_id": "here", "model_name": target.model, "api_base": target.base}
        Path(directory, "extra-openai-models.yaml").write_text(json.dumps([entry]))
        environment = os.environ | {"LLM_USER_PATH": directory, "OPENAI_API_KEY": "none"}
        command = [
            beside_python("llm"),
            "-m",
            "here",
            "Hi",
            "-o",
            "max_tokens",
            "8",
            "-o",
            "temperature",
            "0",
            "--no-log",
        ]
        answers = [
            subprocess.run(command + more, env=environment, capture_output=True, check=True, timeout=60).stdout
            for more in ([], ["--no-stream"])
        ]
    assert answers[0] == answers[1] and answers[0].strip()


@feature("lm-eval", "local task: scores equal to the engine's own")
def _(target: Target) -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    rows = [
        {"question": "The sky is", "choices": [" blue", " made of cheese"], "answer": 0},
        {"question": "One and one is", "choices": [" two", " three"], "answer": 0},
    ]
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory, "rows.jsonl")
        data.write_text("\n".join(map(json.dumps, rows)))
        task = {
            "task": "local_rows",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}",
            "target_delimiter": "",
        }
        Path(directory, "rows.yaml").write_text(json.dumps(task))
        arguments = f"model={target.model},base_url={target.base}/completions,tokenizer={target.checkpoint}"
        found = simple_evaluate(
            model="local-completions",
            model_args=f"{arguments},tokenizer_backend=huggingface,max_retries=1,timeout={SECONDS}",
            tasks=["local_rows"],
            task_manager=TaskManager(include_path=directory, include_defaults=False),
            log_samples=True,
            cache_requests=False,
        )
    samples = sorted(found["samples"]["local_rows"], key=lambda sample: sample["doc_id"])
    for sample, row in zip(samples, rows, strict=True):
        scores = [float(score[0][0]) for score in sample["resps"]]
        expected = [own_score(target.checkpoint, row["question"], choice) for choice in row["choices"]]
        assert all(abs(score - own) < 1e-4 for score, own in zip(scores, expected, strict=True)), (scores, expected)


def own_score(checkpoint: Path, context: str, continuation: str) -> float:
    """What a bare engine says of a continuation."""
    model = load_model(checkpoint)
    return score_of(Engine(model, choose(model.config, model.weights, 16)), context, continuation)


def beside_python(name: str) -> str:
    return shutil.which(name, path=str(Path(sys.executable).parent)) or name
