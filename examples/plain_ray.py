"""A program that knows Ray and nothing of genserve: the system is an actor with a name, words go in, dicts come out.

genserve serve &
python examples/plain_ray.py
"""

import ray

ray.init(address="auto", log_to_driver=False)
handle = ray.get_actor("genserve", namespace="genserve")

answer = ray.get(handle.generate.remote(prompt="Why is the sky blue?", max_tokens=40, temperature=0))
print(f"{answer['text']!r}\n{answer['usage']['completion_tokens']} tokens, then {answer['finish_reason']}")

text = ""
for reference in handle.stream.remote(prompt="Why is the sky blue?", max_tokens=40, temperature=0):
    text += ray.get(reference)["text"]
assert text == answer["text"]
print("streamed, it is the same text")

requests = [{"prompt": f"Count to {number}.", "max_tokens": 20, "seed": number} for number in range(8)]
print(f"{len(ray.get(handle.batch.remote(requests)))} answers to one batch")

try:
    ray.get(handle.generate.remote(prompt="x", adapter="nobody"))
except ray.exceptions.RayTaskError as refused:
    print(refused.cause)
