"""A file of prompts becomes a file of answers; started again, it goes on where it was.

python examples/batch_file.py [MODEL]
"""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

place = sys.argv[1] if len(sys.argv) > 1 else "smollm2"


def chat(number: int) -> dict[str, object]:
    """A line as OpenAI's batches have it."""
    body = {"messages": [{"role": "user", "content": f"Count to {number}."}], "max_tokens": 20}
    return {"custom_id": f"count-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


with TemporaryDirectory() as directory:
    prompts, answers = Path(directory, "prompts.jsonl"), Path(directory, "answers.jsonl")
    plain = [{"prompt": f"Name {number} colours.", "max_tokens": 20, "temperature": 0.8} for number in range(4)]
    lines = [*plain, *map(chat, range(4)), {"prompt": "x", "temprature": 1}]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))

    command = [sys.executable, "-m", "deploy.jobs.batch", str(prompts), str(answers), "--model", place]
    code = subprocess.run(command).returncode
    assert code == 1, "every line is answered but one, which has a slip of the pen"

    for line in map(json.loads, answers.read_text().splitlines()):
        if "custom_id" in line:
            print(f"{line['custom_id']}: {line['response']['body']['choices'][0]['message']['content']!r}")
        else:
            print(f"line {line['line']}: {line['text']!r}")
    (failed,) = map(json.loads, Path(directory, "answers.errors.jsonl").read_text().splitlines())
    print(f"line {failed['line']} failed: {failed['error']['message'][:40]}")

    assert subprocess.run(command).returncode == 1  # nothing is left to do, and nothing is done twice
    assert len(answers.read_text().splitlines()) == 8
