"""A supervised system on Ray, and two LoRA adapters in one batch.

    python examples/two_adapters.py [MODEL]

The adapters are made up here; yours come from `mlx_lm.lora` or PEFT, as a directory each.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import genserve
from actors.process import disconnect
from actors.system import stop
from loaders.adapters import save_adapter
from loaders.made_up import made_up_adapter

place = sys.argv[1] if len(sys.argv) > 1 else "smollm2"

with TemporaryDirectory() as directory:
    config = genserve.load_model(place).config
    voices = {name: str(Path(directory, name)) for name in ("formal", "casual")}
    for seed, path in enumerate(voices.values()):
        save_adapter(path, made_up_adapter(config, rank=8, seed=seed, strength=0.1))

    client = genserve.start(place, adapters=voices, directory=Path(directory, "state"))
    prompts = [{"prompt": "How are you?", "adapter": adapter} for adapter in ("formal", "casual", None)]
    answers = client.batched_run(prompts, max_tokens=24, temperature=0)
    for prompt, answer in zip(prompts, answers, strict=True):
        print(f"{prompt['adapter'] or 'neither'}: {answer.text!r}")
    assert len({answer.tokens for answer in answers}) == 3

    # An adapter that nobody attached is an answer in one sentence, and disturbs nobody.
    try:
        client.generate("How are you?", adapter="rude")
    except genserve.Refusal as refusal:
        print(refusal.message)

    client.close()
    stop()
    disconnect()
