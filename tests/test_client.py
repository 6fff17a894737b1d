"""actors/client.py: finding a running system, and what a program that asks one may say and give up."""

import asyncio
import multiprocessing
import signal
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from queue import SimpleQueue
from typing import Any

import pytest

from actors import line, request_server
from actors.asking import Ask
from actors.client import Client, find_client, num_partitions
from actors.handle import Handle
from actors.inline import Inline
from actors.node import spawn
from actors.pid import Pid
from actors.polls import End, Part, Poll
from actors.refusals import Unavailable
from actors.request_server import Accepted, Submit
from actors.supervision import ChildSpec, Policy
from actors.supervisor import Supervisor, terminate_child
from actors.system_config import ROOT
from engine.completion import Choice, Completion, Usage
from engine.refusal import BadRequest, Refusal
from tests.servers import Echo

USAGE = Usage(1, 1, 0)


def test_a_partition_that_is_dead_just_now_is_counted() -> None:
    with Inline():
        specs = [ChildSpec(f"requests-{number}", (Echo,)) for number in range(3)]
        supervisor = spawn(Supervisor, Policy(), specs, name=f"{ROOT}.requests")
        terminate_child(supervisor, "requests-1")
        assert num_partitions() == 3


def test_where_no_part_of_a_system_lives_none_is_waited_for() -> None:
    with Inline(), pytest.raises(Unavailable, match="no system is running here"):
        find_client()


class Partition:
    """A stand-in that answers every text with itself, but for "never"."""

    def __init__(self) -> None:
        self.asked: dict[str, Ask] = {}
        self.cancelled = SimpleQueue[str]()
        self.on_submit: Callable[[], object] = object
        self.on_unanswered: Callable[[], object] = object
        self._news = threading.Event()

    def submit(self, server: Pid, message: Submit) -> Accepted:
        self.asked[message.ask.id] = message.ask
        self.on_submit()
        return Accepted(message.ask.id, 1, 1)

    async def submit_async(self, server: Pid, message: Submit) -> Accepted:
        return await asyncio.to_thread(self.submit, server, message)

    def poll(self, server: Pid, message: Poll) -> list[Part]:
        if not set(message.wants).isdisjoint(self.unanswered):
            self.on_unanswered()
        parts = [self.part(id, had) for id, had in message.wants.items() if id not in self.unanswered]
        if not parts:
            self._news.wait(0.01)  # as a partition that has no news
        return parts

    @property
    def unanswered(self) -> list[str]:
        return [ask.id for ask in list(self.asked.values()) if ask.prompt == "never"]

    def part(self, id: str, had: Any) -> Part:
        text = str(self.asked[id].prompt)  # the answer
        pieces: list[Any] = [(0, at, text[at], (65,), None, "", None, None) for at in range((had or [0])[0], len(text))]
        whole = Completion(id, (Choice(0, text, (65,), "length"),), USAGE)
        return Part(id, [] if had is None else pieces, End(USAGE, None, None, whole if had is None else None))

    def cancel(self, server: Pid, request_id: str, tenant: str = "") -> bool:
        self.cancelled.put(request_id)
        return True


@pytest.fixture
def partition(monkeypatch: pytest.MonkeyPatch) -> Partition:
    made = Partition()
    monkeypatch.setattr(line, "whereis", lambda name: Pid(name, 1))
    for name in ("submit", "submit_async", "poll", "cancel"):
        monkeypatch.setattr(request_server, name, getattr(made, name))
    return made


@pytest.fixture
def client(partition: Partition) -> Iterator[Client]:
    made = Client(1, patience_seconds=1.0)
    yield made
    made.close()


def handle_of(client: Client) -> Handle:
    """Without the Ray that it lives in."""
    handle = Handle.__new__(Handle)
    handle.client, handle.num_open = client, 0
    return handle


WAYS_TO_ASK = {
    "generate": lambda client, words: client.generate("never", **words),
    "batch": lambda client, words: client.batched_run(["yes", {"prompt": "never", **words}]),
}
WAYS_TO_WAIT = {
    "generate": lambda client, words: client.generate_async("never", **words),
    "batch": lambda client, words: client.batched_run_async(["yes", {"prompt": "never", **words}]),
    "handle": lambda client, words: handle_of(client).generate(prompt="never", **words),
    "stream": lambda client, words: read_all(handle_of(client).stream(prompt="never", **words)),
}


async def read_all(stream: AsyncIterator[Any]) -> None:
    async for _ in stream:
        pass


def interrupt() -> None:
    """A Ctrl-C that does not wake who waits: Python keeps it until the main thread computes again."""
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)


@pytest.fixture
def is_interruptible() -> Iterator[None]:
    """Also where the suite runs in a shell's background, which lets its processes ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("is_interruptible")
@pytest.mark.parametrize("ask", WAYS_TO_ASK.values(), ids=WAYS_TO_ASK)
def test_an_answer_whose_caller_is_interrupted_is_cancelled(partition: Partition, client: Client, ask: Any) -> None:
    partition.on_unanswered = once(interrupt)
    with pytest.raises(KeyboardInterrupt):
        ask(client, {})
    assert partition.cancelled.get(timeout=20) == partition.unanswered[0]


@pytest.mark.usefixtures("is_interruptible")
@pytest.mark.parametrize("ask", WAYS_TO_ASK.values(), ids=WAYS_TO_ASK)
def test_one_with_an_id_is_only_not_listened_to_and_waits_for_its_lease(
    partition: Partition, client: Client, ask: Any
) -> None:
    partition.on_unanswered = once(interrupt)
    with pytest.raises(KeyboardInterrupt):
        ask(client, {"id": "mine"})
    assert partition.cancelled.empty() and not client._lines[0]._inboxes


@pytest.mark.parametrize("ask", WAYS_TO_WAIT.values(), ids=WAYS_TO_WAIT)
def test_an_answer_whose_task_is_cancelled_is_cancelled(partition: Partition, client: Client, ask: Any) -> None:
    asyncio.run(cancelled(partition, client, ask(client, {})))
    assert partition.cancelled.get(timeout=20) == partition.unanswered[0] and not client._lines[0]._inboxes


@pytest.mark.parametrize("ask", WAYS_TO_WAIT.values(), ids=WAYS_TO_WAIT)
def test_one_of_a_task_with_an_id_waits_for_its_lease(partition: Partition, client: Client, ask: Any) -> None:
    asyncio.run(cancelled(partition, client, ask(client, {"id": "mine"})))
    assert partition.cancelled.empty() and not client._lines[0]._inboxes


async def cancelled(partition: Partition, client: Client, asking: Coroutine[Any, Any, Any]) -> None:
    """Cancelled when it waits for what is never answered."""
    task = asyncio.ensure_future(asking)
    inboxes = client._lines[0]._inboxes
    while not any(inbox._sleeper for inbox in list(inboxes.values()) if inbox.id in partition.unanswered):
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_an_answer_whose_task_is_cancelled_before_it_is_accepted_is_cancelled(
    partition: Partition, client: Client
) -> None:
    is_cancelled = threading.Event()

    async def ask() -> None:
        submitting, loop = asyncio.Event(), asyncio.get_running_loop()
        partition.on_submit = lambda: (loop.call_soon_threadsafe(submitting.set), is_cancelled.wait(20))
        task = asyncio.ensure_future(client.generate_async("never"))
        await submitting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        is_cancelled.set()
        assert await asyncio.to_thread(partition.cancelled.get, timeout=20) == partition.unanswered[0]

    asyncio.run(ask())


def once(act: Callable[[], object]) -> Callable[[], object]:
    acts = iter([act])
    return lambda: next(acts, object)()


def test_a_batch_with_a_bad_prompt_asks_for_none(partition: Partition, client: Client) -> None:
    with pytest.raises(BadRequest):
        client.batched_run(["never", {"prompt": "x", "tenant": "t"}])
    assert not partition.asked


def test_what_was_answered_is_not_cancelled(partition: Partition, client: Client) -> None:
    assert client.generate("yes").text == "yes"
    assert asyncio.run(client.generate_async("yes")).text == "yes"
    assert [answer.text for answer in client.batched_run(["a", {"prompt": "b"}])] == ["a", "b"]
    assert [answer.text for answer in asyncio.run(client.batched_run_async(["a", "b"]))] == ["a", "b"]
    assert "".join(piece.text for piece in client.stream("abc")) == "abc"
    assert partition.cancelled.empty()


def test_a_stream_is_an_iterator_and_a_loop_goes_on_where_next_stopped(partition: Partition, client: Client) -> None:
    stream = client.stream("abc")
    assert next(stream).text == "a"
    assert "".join(piece.text for piece in stream) == "bc"
    with pytest.raises(StopIteration):
        next(stream)
    assert partition.cancelled.empty()


def test_an_asynchronous_loop_goes_on_where_next_stopped(partition: Partition, client: Client) -> None:
    async def read() -> str:
        stream = await client.stream_async("abc")
        first = await asyncio.to_thread(next, stream)
        return first.text + "".join([piece.text async for piece in stream])

    assert asyncio.run(read()) == "abc"


@pytest.mark.parametrize(
    ("ask", "param", "sentence"),
    [
        (lambda client: client.generate("x", tenant="t"), "tenant", "the tenant is the client's"),
        (lambda client: client.generate({"prompt": "x", "tenant": "t"}), "tenant", "the tenant is the client's"),
        (lambda client: client.batched_run("abc"), "prompts", "a list of prompts is wanted; got 'abc'"),
        (lambda client: client.batched_run({"prompt": "x"}), "prompts", "a list of prompts is wanted"),
        (lambda client: client.batched_run(None), "prompts", "a list of prompts is wanted; got None"),
        (lambda client: asyncio.run(client.batched_run_async("abc")), "prompts", "a list of prompts is wanted"),
        (lambda client: client.cancel(None), "id", "id must be a string of 1 to 256 bytes; got None"),
        (lambda client: client.cancel("\ud800"), "id", "id must be a string of 1 to 256 bytes"),
        (lambda client: client.resume(7), "id", "id must be a string of 1 to 256 bytes; got 7"),
        (lambda client: client.generate("x", id=7), "id", "id must be a string of 1 to 256 bytes; got 7"),
        (lambda client: client.generate("x", n="many"), "n", "n must be a whole number from 1 to 128; got 'many'"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_sentence(
    partition: Partition, client: Client, ask: Callable[[Client], Any], param: str, sentence: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        ask(client)
    assert caught.value.param == param
    assert sentence in caught.value.message
    assert not partition.asked


def test_a_handle_s_batch_takes_texts_and_words(client: Client) -> None:
    handle = handle_of(client)
    answers = asyncio.run(handle.batch(["a", {"prompt": "b"}]))
    assert [answer["text"] for answer in answers] == ["a", "b"]
    with pytest.raises(ValueError, match="bad_request: a list of prompts is wanted"):
        asyncio.run(handle.batch("abc"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # that this process has threads
def test_a_forked_process_is_told_to_connect_itself(partition: Partition, client: Client) -> None:
    stream = client.stream("never", id="one")

    def ask() -> None:
        told = []
        for what in (lambda: client.generate("x"), lambda: next(stream), client.stats, lambda: client.cancel("one")):
            try:
                what()
            except Refusal as refusal:
                told.append(refusal.message)
        stream.close()
        there.send(told if partition.cancelled.empty() else [])

    here, there = multiprocessing.get_context("fork").Pipe()
    child = multiprocessing.get_context("fork").Process(target=ask)
    child.start()
    assert here.poll(20)
    told = here.recv()
    assert len(told) == 4 and all(it.startswith("a client does not come along into a forked process") for it in told)
    child.join()
