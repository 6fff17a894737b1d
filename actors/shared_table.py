"""SharedTable: the table of names that all programs see, in the control store of the Ray that they are on."""

from typing import Any


class SharedTable:
    """`store` is Ray's way to its control store."""

    def __init__(self, store: Any, namespace: str) -> None:
        self._store = store
        self._namespace = namespace

    def put_new(self, key: str, value: bytes) -> bool:
        return not self._store._internal_kv_put(key, value, overwrite=False, namespace=self._namespace)

    def put(self, key: str, value: bytes) -> None:
        self._store._internal_kv_put(key, value, namespace=self._namespace)

    def get(self, key: str) -> bytes | None:
        found: bytes | None = self._store._internal_kv_get(key, namespace=self._namespace)
        return found

    def delete(self, key: str) -> None:
        self._store._internal_kv_del(key, namespace=self._namespace)

    def keys(self, prefix: str) -> list[str]:
        return [key.decode() for key in self._store._internal_kv_list(prefix, namespace=self._namespace)]
