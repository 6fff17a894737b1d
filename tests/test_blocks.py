"""engine/blocks.py: blocks are owned, shared, kept for who may ask again, and taken back oldest first."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from engine.blocks import BlockPool, next_digest, root_digest
from tests.engines import ask, made_up, paper_engine, serve_one

ROOT = root_digest("model", None, "tenant")


def test_block_zero_is_never_given_out() -> None:
    pool = BlockPool(5, 4)
    assert sorted(pool.allocate() for _ in range(4)) == [1, 2, 3, 4]
    assert pool.num_available == 0 and pool.num_used == 4


def test_a_block_is_free_when_its_last_owner_leaves() -> None:
    pool = BlockPool(3, 4)
    block = pool.allocate()
    pool.share(block)
    pool.release(block)
    assert pool.num_used == 1
    pool.release(block)
    assert pool.num_used == 0
    with pytest.raises(AssertionError):
        pool.release(block)


def test_a_remembered_block_is_found_while_in_use_and_after_until_its_room_is_needed() -> None:
    pool = BlockPool(3, 4)
    first, second = pool.allocate(), pool.allocate()
    pool.remember(first, b"first")
    pool.remember(second, b"second")
    assert pool.find(b"first") == first
    pool.release(second)
    pool.release(first)
    assert pool.num_available == 2 and pool.is_idle(first)
    assert pool.allocate() == second  # unused for longest
    assert pool.find(b"second") is None and pool.find(b"first") == first
    pool.share(first)
    assert not pool.is_idle(first) and pool.num_available == 0


def test_of_two_blocks_with_equal_contents_the_first_is_kept() -> None:
    pool = BlockPool(4, 4)
    first, second = pool.allocate(), pool.allocate()
    pool.remember(first, b"same")
    pool.remember(second, b"same")
    pool.release(second)
    assert pool.find(b"same") == first and not pool.is_idle(second)


def test_everything_that_determines_a_block_is_in_its_digest() -> None:
    roots = [
        root_digest(model, adapter, tenant)
        for model in ("", "m", "m+")
        for adapter in (None, "", "a")
        for tenant in ("", "t", "at")
    ]
    assert len(set(roots)) == len(roots)
    tokens = [(1, 2), (2, 1), (1,), (1, 2, 0), (258,)]
    digests = {next_digest(root, run) for root in roots for run in tokens}
    assert len(digests) == len(roots) * len(tokens)
    assert next_digest(next_digest(ROOT, (1,)), (2,)) != next_digest(ROOT, (1, 2))


def test_the_end_of_a_chain_is_forgotten_before_its_beginning() -> None:
    engine = paper_engine(num_blocks=13, block_size=4)
    prompt = made_up("long", 33, 97)
    serve_one(engine, ask("first", prompt, max_tokens=1))
    serve_one(engine, ask("other", made_up("other", 23, 97), max_tokens=1))  # takes four blocks, of which two back
    found = serve_one(engine, ask("again", prompt, max_tokens=1)).cached_tokens
    assert 16 <= found[0] < 32


class Pool(RuleBasedStateMachine):
    """Owners come and go; a plain list of them is the truth."""

    owned = Bundle("owned")

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(6, 4)
        self.owners: list[int] = []
        self.digests: dict[bytes, int] = {}

    @precondition(lambda self: self.pool.num_available)
    @rule(target=owned)
    def allocate(self) -> int:
        block = self.pool.allocate()
        assert block not in self.owners and block != 0
        self.digests = {digest: other for digest, other in self.digests.items() if other != block}
        self.owners.append(block)
        return block

    @rule(target=owned, block=owned)
    def share(self, block: int) -> int:
        if block in self.owners:
            self.pool.share(block)
            self.owners.append(block)
        return block

    @rule(block=consumes(owned))
    def release(self, block: int) -> None:
        if block in self.owners:
            self.pool.release(block)
            self.owners.remove(block)

    @rule(block=owned, digest=st.sampled_from((b"a", b"b", b"c", b"d")))
    def remember(self, block: int, digest: bytes) -> None:
        if block in self.owners:
            if digest not in self.digests and block not in self.digests.values():
                self.digests[digest] = block
            self.pool.remember(block, digest)

    @rule(target=owned, digest=st.sampled_from((b"a", b"b", b"c", b"d")))
    def find(self, digest: bytes) -> int:
        block = self.pool.find(digest)
        assert block == self.digests.get(digest)
        if block is None:
            return 0
        self.pool.share(block)
        self.owners.append(block)
        return block

    @invariant()
    def counts_agree(self) -> None:
        assert self.pool.references.tolist() == [self.owners.count(block) for block in range(6)]
        assert self.pool.num_used == len(set(self.owners))
        assert self.pool.num_available == 5 - len(set(self.owners))
        assert self.pool.num_remembered == len(self.digests)


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
