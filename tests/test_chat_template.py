"""loaders/chat_template.py: templates give what transformers gives, and can neither hang nor fill the memory."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from engine.refusal import BadRequest
from loaders.chat_template import ChatTemplates
from tests.tiny_tokenizer import CHATML

MESSAGES = [{"role": "system", "content": "Be <brief> & 'kind'."}, {"role": "user", "content": '  Hi "you"\né '}]
TOOLS = [{"type": "function", "function": {"name": "add", "description": "a<b", "parameters": {"x": [1, None, "é"]}}}]

TEMPLATES = {
    "chatml": CHATML,
    "blocks": "{% for m in messages %}\n  {% if m.role %}\n  {{ m.content | trim }}\n  {% endif %}\n{% endfor %}\n",
    "tools": "{% for t in tools %}{{ t | tojson }}|{{ t | tojson(indent=2) }}{% endfor %}",
    "controls": "{% for m in messages * 9 %}{% if loop.first %}{% continue %}{% endif %}{{ m }}{% break %}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "namespace": "{% set n = namespace(k=0) %}{% for m in messages %}{% set n.k = n.k + 1 %}{% endfor %}{{ n.k }}",
    "date": "{{ strftime_now('%Y') }}",
    "filters": "{{ messages | map(attribute='role') | join }}{{ messages | selectattr('role', 'eq', 'user') | first }}",
    "macro": "{% macro turn(m) %}[{{ m.role }}]{% endmacro %}{% for m in messages %}{{ turn(m) }}{% endfor %}",
    "slices": "{{ messages[::-1][0].content.split('i')[-1].lstrip('\\n') }}{{ messages[0].content.startswith('Be') }}",
}


@pytest.fixture(scope="module")
def templates() -> ChatTemplates:
    return ChatTemplates(TEMPLATES)


@pytest.mark.parametrize("name", TEMPLATES)
def test_text_is_that_of_transformers(templates: ChatTemplates, name: str) -> None:
    render: Any = render_jinja_template
    expected, _ = render([MESSAGES], TOOLS, chat_template=TEMPLATES[name], add_generation_prompt=True)
    variables: dict[str, Any] = {"messages": MESSAGES, "tools": TOOLS, "add_generation_prompt": True}
    assert templates.render(name, variables) == expected[0]


HOSTILE = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "recursion": "{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n else 'a' }}{% endmacro %}{{ f(60) }}",
    "doubling": "{% set n = namespace(s='aaaa') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "joining": "{% set n = namespace(s='aaaa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "repeating": "{{ 'a' * 10 ** 11 }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "width": "{{ '%10000000000d' % 1 }}",
    "format": "{{ '{:10000000000}'.format(1) }}",
    "centre": "{{ 'a' | center(10 ** 11) }}",
    "replacing": "{% set a = 'a' * 100000 %}{{ a | replace('a', a) }}",
    "output": "{% for a in range(99999) %}{% for b in range(99999) %}aaaaaaaaaa{% endfor %}{% endfor %}",
    "list": "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "depth": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "range": "{{ range(10 ** 12) | list | length }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_template_is_stopped(name: str) -> None:
    templates = ChatTemplates({name: HOSTILE[name], "chatml": CHATML}, cpu_seconds=0.3, memory_bytes=1 << 28)
    begin = time.perf_counter()
    with pytest.raises(BadRequest, match="the chat template"):
        templates.render(name, {}, max_characters=100_000)
    assert time.perf_counter() - begin < 10
    assert templates.render("chatml", {"messages": MESSAGES[:1]}).startswith("<|im_start|>system")
    templates.close()


ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.append(1) }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ raise_exception.__globals__ }}",
    "{% include '/etc/passwd' %}",
    "{{ ''|attr('__class__') }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_sandbox_keeps_templates_from_python(source: str) -> None:
    templates = ChatTemplates({"default": source})
    try:
        assert templates.render("default", {"messages": []}) == ""  # an attribute out of reach is undefined
    except BadRequest as refusal:
        assert "the chat template refuses" in refusal.message
    templates.close()


def test_what_a_template_says_against_messages_is_told(templates: ChatTemplates) -> None:
    with_voice = ChatTemplates({"default": "{{ raise_exception('roles must alternate') }}"})
    with pytest.raises(BadRequest, match="^the chat template refuses: roles must alternate$"):
        with_voice.render("default", {})
    with pytest.raises(BadRequest, match="TemplateSyntaxError"):
        ChatTemplates({"default": "{% if %}"}).render("default", {})
    with pytest.raises(BadRequest, match="UndefinedError"):
        templates.render("chatml", {"messages": [{}]})


def test_renderings_from_many_threads_do_not_mix(templates: ChatTemplates) -> None:
    def render(number: int) -> bool:
        text = templates.render("chatml", {"messages": [{"role": "user", "content": str(number)}]})
        return text == f"<|im_start|>user\n{number}<|im_end|>\n"

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(render, range(200)))


def test_rendering_takes_less_than_two_milliseconds(templates: ChatTemplates) -> None:
    variables = {"messages": MESSAGES * 4, "add_generation_prompt": True}
    templates.render("chatml", variables)
    times = []
    for _ in range(50):
        begin = time.perf_counter()
        templates.render("chatml", variables)
        times.append(time.perf_counter() - begin)
    assert sorted(times)[len(times) // 2] < 0.002


def test_process_ends_with_its_owner() -> None:
    program = (
        "from loaders.chat_template import ChatTemplates; import os\n"
        "t = ChatTemplates({'default': 'a'}); t.render('default', {})\n"
        "print(t._process.pid, flush=True); os._exit(1)"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root, check=False)
    pid = int(done.stdout)
    deadline = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < deadline:
        threading.Event().wait(0.01)
    assert not is_alive(pid)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_a_process_that_was_killed_is_replaced(templates: ChatTemplates) -> None:
    templates.render("date", {})
    process = templates._process
    assert process is not None
    process.kill()
    process.wait()
    assert templates.render("macro", {"messages": MESSAGES}) == "[system][user]"


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_process_is_no_fault_of_the_message_in_it(end: signal.Signals) -> None:
    """`ray job stop` and service managers send theirs to every process of a program, which has work to finish."""
    slow = "{% for i in range(90000) %}{% for j in range(9) %}{% endfor %}{% endfor %}done"
    templates = ChatTemplates({"slow": slow, "quick": "done"})
    templates.render("quick", {})
    process = templates._process
    assert process is not None
    threading.Timer(0.05, process.send_signal, (end,)).start()
    assert templates.render("slow", {}) == "done"
    assert (templates._process is process) == (end == signal.SIGTERM), "it was at work when the signal came"
    templates.close()


def test_large_text_passes_both_ways(templates: ChatTemplates) -> None:
    text = "é\u2028" * 500_000
    assert templates.render("generation", {"messages": [{"content": text}]}) == text
