"""Chat: messages in, and out the text that the model's template makes of them, its control tokens by secret names.

The secret names stand in the template's source, in place of the real ones, before it is compiled. So what the
template writes counts, what messages say does not, and a template may look at messages, cut them and join them as it
likes: they are not marked in any way. A few templates put control tokens together from parts ('<|' + role + '|>').
A harmless conversation shows which do: with secret names its text is another. For those, control tokens are found in
the finished text, and what messages say is marked so that nothing is found there.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from typing import Any

from engine.refusal import BadRequest, Refusal
from loaders.chat_template import ChatTemplates
from loaders.control_tokens import ControlTokens, nonce
from loaders.messages import check_json, plain_messages

HARMLESS = [{"role": role, "content": "Hi"} for role in ("system", "user", "assistant", "user")]
HARMLESS_TOOLS = [{"type": "function", "function": {"name": "f", "description": "Hi", "parameters": {}}}]
# What templates look up in messages and tools. Any other key may be a text from outside.
KNOWN_KEYS = {
    "additionalProperties", "anyOf", "arguments", "content", "default", "description", "enum", "format", "function",
    "id", "items", "name", "nullable", "parameters", "properties", "reasoning", "reasoning_content", "required",
    "return", "role", "strict", "thinking", "title", "tool_call_id", "tool_calls", "tool_plan", "type",
}  # fmt: skip
TEMPLATE_ROOM = 1 << 16  # what a template may add to what it was given, and a bit


class Chat:
    """The chat templates of one model."""

    def __init__(self, templates: Mapping[str, str], named_tokens: Mapping[str, str], control: ControlTokens) -> None:
        self.control = control
        self.names = templates.keys()
        concealed = {f"concealed {name}": control.conceal(source) for name, source in templates.items()}
        self._templates = ChatTemplates({**templates, **concealed})
        self._named_tokens = named_tokens
        self._marker = f"\ue000{nonce()}\ue001"
        self._puts_together = cache(self._find_out)

    def text(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        thinking: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        max_bytes: int,
    ) -> str:
        """The conversation as one text, in which control tokens have their secret names."""
        plain = plain_messages(messages)
        check_json(plain, max_bytes, "messages")
        check_json(tools, max_bytes, "tools")
        name = "tool_use" if tools and "tool_use" in self.names else "default"
        if name not in self.names:
            raise BadRequest(f"the model has chat templates for {', '.join(self.names)} only", "messages")
        variables = {
            "messages": plain,
            "tools": list(tools) if tools else None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            "enable_thinking": thinking,
        }
        try:
            if self._puts_together(name):
                # A role is one of ours, which templates compare.
                marked_messages = [self._mark(message) | {"role": message["role"]} for message in plain]
                marked = {**variables, "messages": marked_messages, "tools": self._mark(variables["tools"])}
                text = self._templates.render(name, {**marked, **self._named_tokens}, 4 * max_bytes + TEMPLATE_ROOM)
                return self.control.conceal(text).replace(self._marker, "")
            return self._render_concealed(name, variables, 4 * max_bytes + TEMPLATE_ROOM)
        except Refusal as refusal:
            raise type(refusal)(self.control.reveal(refusal.message), refusal.param) from None

    def close(self) -> None:
        self._templates.close()

    def _render_concealed(self, name: str, variables: Mapping[str, Any], max_characters: int) -> str:
        named = {key: self.control.names.get(text, text) for key, text in self._named_tokens.items()}
        return self._templates.render(f"concealed {name}", {**variables, **named}, max_characters)

    def _find_out(self, name: str) -> bool:
        """Whether a template puts control tokens together from parts."""
        for messages in (HARMLESS, HARMLESS[1:], HARMLESS[1:2]):  # some want no system message
            variables = {
                "messages": messages,
                "tools": HARMLESS_TOOLS if name == "tool_use" else None,
                "documents": None,
                "add_generation_prompt": True,
                "enable_thinking": False,
            }
            try:
                text = self._templates.render(name, {**variables, **self._named_tokens}, TEMPLATE_ROOM)
                return self.control.conceal(text) != self._render_concealed(name, variables, TEMPLATE_ROOM)
            except BadRequest:
                continue
        return False

    def _mark(self, value: Any) -> Any:
        """Put the marker wherever a control token could begin, or have begun before the text."""
        if isinstance(value, Mapping):
            return {key if key in KNOWN_KEYS else self._mark(key): self._mark(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [self._mark(part) for part in value]
        if not isinstance(value, str):
            return value
        marked = self._first_characters.sub(lambda match: match[0] + self._marker, value)
        return self._marker + marked if value and self._goes_on_with(value) else marked

    @cached_property
    def _first_characters(self) -> re.Pattern[str]:
        first = "".join(sorted({name[0] for name in self.control.names}))
        return re.compile(f"[{re.escape(first)}]") if first else re.compile(r"(?!)")

    def _goes_on_with(self, value: str) -> bool:
        longest = max(map(len, self.control.names), default=0)
        begins_with_end = any(value[:length] in self._ends for length in range(1, min(len(value), longest) + 1))
        return begins_with_end or value in self._all_but_first_characters

    @cached_property
    def _ends(self) -> frozenset[str]:
        return frozenset(text[cut:] for text in self.control.names for cut in range(1, len(text)))

    @cached_property
    def _all_but_first_characters(self) -> str:
        return "\0".join(text[1:] for text in self.control.names)
