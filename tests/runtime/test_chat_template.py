"""Chat templates: what transformers makes of them, or one clear error."""

import os
import time

import pytest

from llmq.errors import ResourceError, UnsupportedError
from llmq.runtime import confined
from llmq.runtime.chat_template import render

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- system_message }}{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("one tool call at once") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}{{- tool_call.arguments | tojson }}{{- "}" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
MISTRAL = """{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}
{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"""
QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and not(message.content.startswith('<tool_response>')) %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}
    {%- endif %}
    {%- if message.role == "assistant" and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content }}
    {%- if message.tool_calls %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
            {{- tool_call.arguments if tool_call.arguments is string else tool_call.arguments | tojson(indent=2) }}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
FEATURES = """{% macro say(role, text) %}<{{ role | upper }}>{{ text | replace('a', 'b') }}{% endmacro %}
{% set seen = namespace(count=0, names=[]) %}
  {% for message in messages if message.role != 'system' %}
    {% set seen.count = seen.count + 1 %}
    {% if loop.index > 9 %}{% break %}{% endif %}
    {% if not message.content %}{% continue %}{% endif %}
    {{ say(message.role, message.content) }}{{ message | tojson }}{{ loop.last }}{{ message.get('name', 'nobody') }}
    {% generation %}{% set inner = 1 %}{{ message.content }}{% endgeneration %}{{ inner is defined }}
  {% endfor %}
{{ seen.count }} {{ strftime_now('%Y') }} {{ dict(a=1) }} {{ messages | map(attribute='role') | unique | list }}
{{ [3, 1, 2] | sort | join('-') }} {{ '%5.1f|%s' | format(3.14159, 'é') }} {{ 'x' * 3 }} {{ 2 ** 10 }} {{ "a b"|title }}
{{ none }} {{ undefined_thing }} {{ tools }} {{ documents is none }}
{{ {'k': [1, {'z': 'ü'}]} | tojson }} {{ 1e3 | int }}"""

TALK = [
    {"role": "system", "content": "  Be brief.\n"},
    {"role": "user", "content": "Say <b> & 'é' \U0001f642"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nNo."},
    {"role": "user", "content": "Why?\n\n"},
]
CALLS = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "get", "arguments": {"city": "Köln"}}}],
    },
    {"role": "tool", "content": "rain"},
]
TOOLS = [
    {"type": "function", "function": {"name": "get", "description": "Gets <it>.", "parameters": {"type": "object"}}}
]
TEMPLATES = {"ChatML": CHATML, "Llama 3": LLAMA3, "Mistral": MISTRAL, "Qwen": QWEN, "features": FEATURES}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory, write_tokenizer):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(
    ("messages", "more"),
    [
        (TALK, {}),
        (TALK, {"add_generation_prompt": True}),
        (TALK[1:], {"add_generation_prompt": True}),
        (CALLS, {"tools": TOOLS}),
        (TALK, {"documents": [{"title": "t", "text": "x"}], "enable_thinking": False}),
    ],
)
def test_what_transformers_makes_of_it(tokenizer, name, messages, more):
    how = {"chat_template": TEMPLATES[name], "tokenize": False} | more
    try:
        expected = tokenizer.apply_chat_template(messages, **how)
    except Exception as error:
        expected = error
    given = dict(tokenizer.special_tokens_map) | more
    if isinstance(expected, Exception):
        with pytest.raises(UnsupportedError) as caught:
            render(TEMPLATES[name], messages, given)
        assert str(expected).splitlines()[0][:200] in str(caught.value)
    else:
        assert render(TEMPLATES[name], messages, given) == expected


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "it takes too long"),
        ("{{ 'a' * 10**10 }}", "it takes too much memory"),
        ("{{ '%0999999999d' % 1 }}", "it takes too much memory"),
        (
            "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}",
            "takes too",
        ),
        ("{% for a in range(99999) %}{{ 'a' * 99 }}{% endfor %}", "it makes more than"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "it is nested too deeply"),
        ("{{ '' .__class__.__mro__ }}", "is unsafe"),
        ("{{ cycler.__init__.__globals__.os.system('x') }}", "is unsafe"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ raise_exception('\x1b[31mno') }}", r"\\x1b\[31mno"),
        ("{% for %}", "Expected"),
    ],
)
def test_bounds(template, what):
    began = time.monotonic()
    with pytest.raises(UnsupportedError, match=f"^the chat template refuses this conversation: .*{what}") as caught:
        render(template, TALK)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    assert time.monotonic() - began < 15


def test_a_template_that_is_too_long():
    with pytest.raises(UnsupportedError, match="the chat template is too long"):
        render("a" * 1_000_001, TALK)


def test_long_conversations_are_fine():
    talk = [{"role": "user", "content": "word " * 400_000}]
    assert len(render(CHATML, talk)) > 2_000_000


def test_nothing_of_the_environment_is_seen(monkeypatch):
    """Even code that got out of the sandbox would find no token there, and could open no file."""
    monkeypatch.setenv("HF_TOKEN", "secret")
    seen = []
    start = confined.subprocess.Popen

    def watch(command, **how):
        seen.append(how["env"])
        return start(command, **how)

    monkeypatch.setattr(confined.subprocess, "Popen", watch)
    render("{{ 1 }}", TALK)
    assert set(seen[0]) <= {"TZ", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TOKENIZERS_PARALLELISM"}


def test_no_process_is_an_error(monkeypatch):
    def refuse(*_, **__):
        raise OSError(11, os.strerror(11))

    monkeypatch.setattr(confined.subprocess, "Popen", refuse)
    with pytest.raises(ResourceError, match="no process for the chat template can be started"):
        render("{{ 1 }}", TALK)
