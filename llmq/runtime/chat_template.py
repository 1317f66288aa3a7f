"""Chat templates, which are programs by strangers: rendered in a process of their own, within a second and a megabyte.

What comes of a template is what `apply_chat_template` of transformers makes of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llmq.errors import ResourceError, UnsupportedError, first_line
from llmq.runtime.confined import Confined

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["render"]

_SECONDS: Final = 1.0
_MEMORY: Final = 512 << 20
_TEMPLATE: Final = 1_000_000
"""Characters of a template; real ones have a few thousand."""

_TEXT: Final = 1_000_000
"""Characters that a template may make, beside four for each of what was said."""


def render(template: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any] | None = None) -> str:
    """Render a conversation.

    Parameters
    ----------
    template : str
        In Jinja, as ``tokenizer_config.json`` or ``chat_template.jinja`` has it.
    messages : sequence of mapping
        Each with `role` and `content`, and whatever else the template knows; JSON-able.
    variables : mapping, optional
        More that the template may ask for: special tokens, `tools`, `documents`, `add_generation_prompt`.

    Raises
    ------
    UnsupportedError
        The template is malformed, refuses the conversation, or takes too much time, memory or text.
    ResourceError
        No process can be started.
    """
    if len(template) > _TEMPLATE:
        raise UnsupportedError(
            "the chat template is too long", expected=f"at most {_TEMPLATE} characters", found=len(template)
        )
    # As transformers does: many templates do not expect a null where nothing is meant.
    said = [{key: value for key, value in message.items() if value is not None} for message in messages]
    given = {"tools": None, "documents": None, "add_generation_prompt": False} | dict(variables or {})
    given |= {"messages": said}
    most = _TEXT + 4 * len(str(given))
    task = {"template": template, "variables": given, "characters": most}
    try:
        sandbox = Confined("template", task, seconds=_SECONDS, memory=_MEMORY, most=12 * most + 10_000)
    except OSError as error:
        raise ResourceError(f"no process for the chat template can be started: {error.strerror}") from error
    reply = sandbox.reply()
    if "text" in reply:
        return str(reply["text"])
    why = first_line(ValueError(reply.get("error", "")))[:200]
    hint = "llmq generate goes on from a text as it is, without the template"
    raise UnsupportedError(f"the chat template refuses this conversation: {why}", hint=hint)
