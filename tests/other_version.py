"""`python -m tests.other_version ADDRESS`: have the Ray there say that it is another version, until stdin ends."""

import json
import sys

import ray
from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
from ray.experimental import internal_kv

KEY = b"CLUSTER_METADATA"

if __name__ == "__main__":
    ray.init(sys.argv[1], log_to_driver=False)
    said = internal_kv._internal_kv_get(KEY, namespace=KV_NAMESPACE_CLUSTER)
    other = json.dumps(json.loads(said) | {"ray_version": "2.41.0"})
    internal_kv._internal_kv_put(KEY, other, namespace=KV_NAMESPACE_CLUSTER)
    print("ready", flush=True)
    sys.stdin.read()
    internal_kv._internal_kv_put(KEY, said, namespace=KV_NAMESPACE_CLUSTER)
