"""One program, one thread, no Ray: load a model, load a tokenizer, run.

python examples/inline.py [MODEL]
"""

import sys

import genserve

place = sys.argv[1] if len(sys.argv) > 1 else "smollm2"
serving = genserve.generation(genserve.load_model(place), genserve.load_tokenizer(place))

# One prompt, as a whole, and piece by piece.
answer = serving.run("Why is the sky blue?", max_tokens=40, temperature=0)
print(f"{answer.text!r}\n{answer.usage.completion_tokens} tokens, then {answer.finish_reason}")
for piece in serving.stream("Tell me a story.", max_tokens=40, seed=7):
    print(piece.text, end="", flush=True)
print()

# Many prompts are one batch, and none of them changes another's text.
prompts = ["Why is the sky blue?", "Name a colour.", [{"role": "user", "content": "Say hello."}]]
answers = serving.run(prompts, max_tokens=40, temperature=0)
assert answers[0].text == answer.text
print(f"{len(answers)} answers in one batch, the first as before")
