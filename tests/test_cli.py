"""The command line: what it prints, and that bad input is one sentence and exit code 2."""

import json
import re
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest

from deploy.cli.batch import Bar
from deploy.cli.main import main
from deploy.cli.post import PROMPT, wanted
from loaders.adapters import load_adapter, save_adapter
from loaders.checkpoint import load_model
from loaders.made_up import made_up_adapter
from tests.tiny import write_checkpoint
from tests.tiny_tokenizer import write_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    write_checkpoint(directory, "llama", {"group_size": 32, "bits": 4})
    return write_tokenizer(directory)


@pytest.fixture(scope="module")
def adapter(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("adapter")
    save_adapter(directory / "voice", made_up_adapter(load_model(place).config, 4, seed=1, strength=0.2))
    return directory / "voice"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def posts(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, object]]:
    code, out, _ = run(capsys, "post", *arguments, "--json", "--max-tokens", 20)
    assert code == 0
    return [json.loads(line) for line in out.splitlines()]


def test_post_prints_as_many_posts_as_asked(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    assert len(posts(capsys, 5, "--model", place, "--seed", 1)) == 5
    assert len(posts(capsys, "about rain", "-n", 2, "--model", place)) == 2


def test_a_number_of_posts_needs_no_prompt() -> None:
    assert wanted(None, None) == (1, PROMPT)
    assert wanted(None, 3) == wanted("3", None) == (3, PROMPT)


def test_what_only_looks_like_a_number_is_a_prompt() -> None:
    assert wanted("-- 5", None) == (1, "-- 5")
    assert wanted("--5", 2) == (2, "--5")


def test_json_has_the_fields_of_a_completion(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    (post,) = posts(capsys, "hello", "--model", place, "--seed", 1)
    assert set(post) == {"text", "tokens", "finish_reason", "usage"}
    usage = post["usage"]
    assert isinstance(usage, dict)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens"] > 5


def test_the_same_seed_gives_the_same_posts(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    assert posts(capsys, 2, "--model", place, "--seed", 9) == posts(capsys, 2, "--model", place, "--seed", 9)


def test_an_adapter_changes_the_posts_and_its_scale_does_too(
    capsys: pytest.CaptureFixture[str], place: Path, adapter: Path
) -> None:
    def tokens(*more: object) -> object:
        return posts(capsys, "x", "--model", place, "--seed", 1, "--temperature", 0, *more)[0]["tokens"]

    assert len({str(tokens()), str(tokens("--adapter", adapter)), str(tokens("--adapter", f"{adapter}:40"))}) == 3


def test_inspect_tells_what_a_model_is(capsys: pytest.CaptureFixture[str], place: Path, adapter: Path) -> None:
    code, out, _ = run(capsys, "inspect", place, adapter, "--json")
    report = json.loads(out)
    assert code == 0
    assert report["architecture"] == "llama"
    assert report["parameters"] == sum(
        size for size in (256 * 64, 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128 + 2 * 64), 64)
    )
    assert report["context"] == 512
    assert {group["part"] for group in report["quantization"]} >= {"layers 0-1"}
    assert report["adapters"][0]["fits"]


def test_inspect_says_why_an_adapter_does_not_fit(
    capsys: pytest.CaptureFixture[str], adapter: Path, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path, "llama", hidden_size=128)
    _, out, _ = run(capsys, "inspect", tmp_path, adapter)
    assert "does not fit: " in out


@pytest.mark.parametrize("name", ["a file", "nothing", "an empty folder", "half an adapter", "a" * 300])
def test_inspect_refuses_a_path_that_brings_no_adapter(
    capsys: pytest.CaptureFixture[str], place: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "a file").touch()
    (tmp_path / "an empty folder").mkdir()
    (tmp_path / "half an adapter").mkdir()
    (tmp_path / "half an adapter" / "adapter_config.json").touch()
    code, out, err = run(capsys, "inspect", place, tmp_path / name)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{name} is n" in err and "adapter" in err


def test_inspect_looks_into_a_directory_of_adapters(
    capsys: pytest.CaptureFixture[str], place: Path, adapter: Path
) -> None:
    _, out, _ = run(capsys, "inspect", place, adapter.parent, "--json")
    assert [(found["path"], found["fits"]) for found in json.loads(out)["adapters"]] == [(str(adapter), True)]


def test_brackets_in_a_path_are_shown_as_they_are(
    capsys: pytest.CaptureFixture[str], place: Path, tmp_path: Path
) -> None:
    odd = tmp_path / "mine [red" / "] and [" / "bold]"
    odd.mkdir(parents=True)
    write_checkpoint(odd, "llama", hidden_size=128)
    save_adapter(odd / "voice", made_up_adapter(load_model(place).config, 4, seed=1))
    code, out, _ = run(capsys, "inspect", odd, odd / "voice")
    assert code == 0
    assert out.startswith(f"{odd}\n")
    assert f"  adapter       {odd / 'voice'}: does not fit" in out
    with Bar() as bar:
        bar.say(f"starting {odd}")
    assert capsys.readouterr().err == f"starting {odd}\n"


def test_quantize_makes_a_checkpoint_that_posts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "float", "qwen2")
    write_tokenizer(tmp_path / "float")
    code, out, _ = run(capsys, "quantize", tmp_path / "float", tmp_path / "small", "--bits", 4, "--group-size", 32)
    assert (code, "MB" in out) == (0, True)
    assert posts(capsys, "x", "--model", tmp_path / "small", "--seed", 1)


def test_bench_measures_a_load(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    arguments = ["--requests", 6, "--output-tokens", "4:8", "--adapters", 2, "--reference", 2, "--json"]
    code, out, _ = run(capsys, "bench", "--model", place, *arguments)
    report = json.loads(out)
    assert code == 0
    assert report["genserve"]["requests"] == 6
    assert report["mlx-lm"]["output_tokens"] == report["genserve, same load"]["output_tokens"]
    assert report["ratio"] > 0


def test_bench_of_answers_of_one_token_has_no_time_between_tokens(
    capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    arguments = ["--requests", 2, "--output-tokens", 1, "--adapters", 0, "--reference", 2, "--sequences", 1]
    code, out, _ = run(capsys, "bench", "--model", place, *arguments)
    between = next(line for line in out.splitlines() if "between" in line)
    assert (code, between.count("-")) == (0, 3)


def broken_shard(place: Path) -> None:
    file = next(place.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])


def unknown_architecture(place: Path) -> None:
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))


def strange_bits(place: Path) -> None:
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"quantization": {"bits": 7, "group_size": 32}}))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (broken_shard, "model.safetensors"),
        (unknown_architecture, "known are llama, mistral, qwen2, qwen3"),
        (strange_bits, "7"),
    ],
)
def test_a_bad_model_is_one_sentence_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], place: Path, tmp_path: Path, damage: object, sentence: str
) -> None:
    copy = Path(shutil.copytree(place, tmp_path / "copy"))
    damage(copy)  # type: ignore[operator]
    code, out, err = run(capsys, "post", "--model", copy)
    assert (code, out) == (2, "")
    assert err.startswith("genserve: ") and err.count("\n") == 1
    assert sentence in re.sub(r"\s+", " ", err)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["post", "--model", "no-such-model"], "'no-such-model' is no directory"),
        (["post", "0"], "number of posts must be a whole number from 1 to 128; got 0"),
        (["post", "9" * 5000], "number of posts must be a whole number from 1 to 128; got one of 5000 digits"),
        (["post", "-n", "-3", "x"], "number of posts"),
        (["post", " "], "the prompt is empty"),
        (["post", "x", "--temperature", "-1"], "temperature must be a number from 0 to 100; got -1.0"),
        (["post", "x", "--top-p", "2"], "top_p must be"),
        (["post", "x", "--max-chars", "0"], "max-chars"),
        (["post", "5", "-n", "0"], "number of posts must be a whole number from 1 to 128; got 0"),
        (["post", "x", "--seed", "-3"], "seed must be a whole number from 0"),
        (["post", "x", "--max-tokens", "-1"], "max_tokens must be a whole number"),
        (["post", "x", "--max-tokens", "0"], "max_tokens must be a whole number from 1 to 2147483647; got 0"),
        (["post", "2", "-n", "3"], "the number of posts is given twice, as '2' and as -n 3"),
        (["post", "hi", "--address", "127.0.0.1:1"], "--address is for --connect"),
        (["post", "x" * 9000], "context holds at most"),
        (["post", "x", "--adapter", "nowhere"], "nowhere"),
        (["post", "x", "--adapter", "nowhere:much"], "the scale a number"),
        (["post", "--connect", "--model", "nonsense"], "with --connect the model is that of the system that runs"),
        (["batch", "in.jsonl", "."], ". is a directory; a file is wanted"),
        (["batch", "in.jsonl", "/"], "/ is a directory; a file is wanted"),
        (["batch", "in.jsonl", "out.jsonl", "--adapter", "v=a", "--adapter", "v=b"], "two adapters are named 'v'"),
        (["inspect", "nowhere"], "'nowhere' is no directory"),
        (["bench", "--prompt-tokens", "9:3"], "prompt-tokens must rise"),
        (["bench", "--requests", "0"], "requests must be a whole number"),
        (["bench", "--rate", "-1"], "rate must be a number above 0"),
        (["bench", "--rate", "nan"], "rate must be a number above 0"),
        (["bench", "--seed", "-1"], "seed must be a whole number"),
        (["bench", "--reference", "-1"], "reference must be a whole number"),
    ],
)
def test_bad_arguments_are_one_sentence_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], place: Path, arguments: list[str], sentence: str
) -> None:
    if "--model" not in arguments and arguments[0] != "inspect":
        arguments = [*arguments, "--model", str(place)]
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("genserve: ") and err.count("\n") == 1
    assert sentence in err


def test_the_version_is_the_installed_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"genserve {version('genserve')}\n", "")


def test_inspect_wants_a_model_and_no_adapters(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "inspect")
    assert code == 2
    assert err.endswith("error: the following arguments are required: model\n")


def test_an_adapter_that_is_saved_loads_again(place: Path, adapter: Path) -> None:
    config = load_model(place).config
    assert load_adapter(adapter, model_config=config).rank == 4
