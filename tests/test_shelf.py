"""engine/shelf.py: adapters come and go without moving each other, and take no more room than is given."""

from itertools import count

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.adapter import Adapter, LowRank
from engine.refusal import Unsupported
from engine.shelf import Shelf
from tests.engines import random_adapter, tiny_model

MODEL = tiny_model()
LAYERS = MODEL.config.num_layers
BYTES = random_adapter(MODEL).num_bytes


def shelf_of(num_adapters: int, room: int = 100) -> Shelf:
    shelf = Shelf(LAYERS, room * BYTES)
    attach_all(shelf, [random_adapter(MODEL, seed=index) for index in range(num_adapters)])
    return shelf


def attach_all(shelf: Shelf, adapters: list[Adapter]) -> None:
    for index, adapter in enumerate(adapters):
        shelf.attach(f"a{index}", adapter)


def in_precision(dtype: mx.Dtype, adapter: Adapter) -> Adapter:
    pairs = adapter.modules.items()
    modules = {place: LowRank(pair.a.astype(dtype), pair.b.astype(dtype), pair.scale) for place, pair in pairs}
    return Adapter(modules, f"{adapter.version}-{dtype}")


def laid_bytes(shelf: Shelf) -> int:
    stack = shelf.stack()
    return 0 if stack is None else sum(array.nbytes for array in stack.arrays())


def assert_holds(shelf: Shelf, name: str, adapter: Adapter) -> None:
    """The stack has an adapter's numbers, and the right masks, where its rows will look for them."""
    slot, version = shelf.acquire(name)
    shelf.release(slot)
    stack = shelf.stack()
    assert stack is not None and version == adapter.version
    found = stack.take(slot)
    assert found.keys() == adapter.modules.keys()
    for place, pair in adapter.modules.items():
        assert found[place].scale == pair.scale
        np.testing.assert_array_equal(np.array(found[place].a), np.array(pair.a))
        np.testing.assert_array_equal(np.array(found[place].b), np.array(pair.b))
    for _, stacked in stack.modules():
        rows, starts = stacked.layout.rows_of(slot), np.array(stacked.layout.starts)
        assert (starts[slot], starts[slot + 1]) == (rows.start, rows.stop)
        assert (np.array(stacked.layout.owner)[rows] == slot).all()


def test_an_adapter_of_the_same_ranks_is_written_over_one_that_went() -> None:
    shelf = shelf_of(5)
    stack = shelf.stack()
    kept = {index: shelf.acquire(f"a{index}")[0] for index in (0, 1, 3, 4)}
    shelf.detach("a2")
    shelf.attach("new", random_adapter(MODEL, seed=9, scale=0.5))
    assert shelf.stack() is stack
    assert_holds(shelf, "new", random_adapter(MODEL, seed=9, scale=0.5))
    for index, slot in kept.items():
        assert shelf.acquire(f"a{index}")[0] == slot
        assert_holds(shelf, f"a{index}", random_adapter(MODEL, seed=index))


def test_nothing_but_its_own_rows_is_copied_for_an_adapter_that_takes_a_vacant_slot() -> None:
    shelf = shelf_of(40)
    stack, adapter = shelf.stack(), random_adapter(MODEL, seed=99)
    assert stack is not None
    mx.eval(stack.arrays(), [part for pair in adapter.modules.values() for part in (pair.a, pair.b)])
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    shelf.attach("new", adapter)
    assert shelf.stack() is stack
    assert mx.get_peak_memory() - before < 4 * BYTES


def test_some_slots_are_laid_for_those_who_come_next() -> None:
    shelf = shelf_of(8)
    stack = shelf.stack()
    shelf.attach("one more", random_adapter(MODEL, seed=50))
    shelf.attach("and one more", random_adapter(MODEL, seed=51))
    assert shelf.stack() is stack
    shelf.attach("too many", random_adapter(MODEL, seed=52))
    assert shelf.stack() is not stack
    for name, seed in (("a3", 3), ("one more", 50), ("too many", 52)):
        assert_holds(shelf, name, random_adapter(MODEL, seed=seed))


def test_vacant_slots_are_laid_only_where_there_is_room_for_them() -> None:
    shelf = shelf_of(8, room=9)
    assert laid_bytes(shelf) == 9 * BYTES
    assert laid_bytes(shelf_of(8, room=8)) == 8 * BYTES


def test_an_adapter_of_other_ranks_or_another_precision_is_laid_anew() -> None:
    shelf = shelf_of(4)
    stack = shelf.stack()
    shelf.detach("a1")
    wide = random_adapter(MODEL, 6, seed=7, up_proj=2)
    shelf.attach("wide", wide)
    assert shelf.stack() is not stack
    assert_holds(shelf, "wide", wide)
    assert_holds(shelf, "a3", random_adapter(MODEL, seed=3))


def test_what_was_left_in_vacant_slots_goes_when_most_is_vacant_and_all_of_it_with_the_last_adapter() -> None:
    shelf = shelf_of(20)
    most = laid_bytes(shelf)
    for index in range(12):
        shelf.detach(f"a{index}")
    assert laid_bytes(shelf) <= most / 2
    assert_holds(shelf, "a15", random_adapter(MODEL, seed=15))
    for index in range(12, 20):
        shelf.detach(f"a{index}")
    assert shelf.stack() is None


@given(st.lists(st.tuples(st.sampled_from((1, 4, 32)), st.sampled_from((mx.float32, mx.float16))), max_size=20))
@example([(4, mx.float32)] * 7 + [(32, mx.float32)])
@example([(4, mx.float16)] * 20 + [(4, mx.float32)])
@settings(max_examples=30, deadline=None)
def test_a_stack_that_was_just_laid_stays_while_nothing_changes(kinds: list[tuple[int, mx.Dtype]]) -> None:
    shelf = Shelf(LAYERS, 1000 * BYTES)
    attach_all(shelf, [in_precision(dtype, random_adapter(MODEL, rank)) for rank, dtype in kinds])
    stack = shelf.stack()
    assert shelf.stack() is stack


@pytest.mark.parametrize("place_of_the_large", [0, 3, 7])
def test_what_a_large_adapter_had_is_given_back_when_it_has_gone(place_of_the_large: int) -> None:
    shelf = Shelf(LAYERS, 100 * BYTES)
    ranks = [4] * 7
    ranks.insert(place_of_the_large, 32)
    attach_all(shelf, [random_adapter(MODEL, rank, seed) for seed, rank in enumerate(ranks)])
    assert laid_bytes(shelf) >= 15 * BYTES
    shelf.detach(f"a{place_of_the_large}")
    assert laid_bytes(shelf) <= 8 * BYTES
    assert_holds(shelf, "a5", random_adapter(MODEL, seed=5))


def test_a_newer_version_that_can_never_fit_is_refused_for_good_and_the_old_one_has_room_as_before() -> None:
    shelf = shelf_of(2, room=1)
    with pytest.raises(Unsupported, match=rf"'a0' has {2 * BYTES} bytes .* adapters may have {BYTES} together"):
        shelf.attach("a0", random_adapter(MODEL, 8))
    assert shelf.names == ("a0", "a1") and shelf.resident == ("a1",)
    assert shelf.has_room_for("a0")


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from((1, 1, 1, 4)), st.booleans()), max_size=25), st.integers(2, 6)
)
@settings(max_examples=30)
def test_whatever_comes_and_goes_every_adapter_in_memory_is_where_it_says(
    moves: list[tuple[int, int, bool]], room: int
) -> None:
    largest = random_adapter(MODEL, 4).num_bytes
    shelf, present, seeds = Shelf(LAYERS, room * largest), dict[str, Adapter](), count()
    for number, rank, looks in moves:
        name = f"a{number}"
        if name in present and rank == 1:
            shelf.detach(name)
            del present[name]
        else:
            present[name] = random_adapter(MODEL, rank, seed=next(seeds))
            shelf.attach(name, present[name])
        if looks:
            for resident in shelf.resident:
                assert_holds(shelf, resident, present[resident])
            assert laid_bytes(shelf) <= room * largest
