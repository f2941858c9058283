"""Chat templates out of downloads: what they render is what transformers renders, within bounds, and what they raise is said."""

import os
import time

import pytest

from inlay.errors import DataError, FormatError
from inlay.text import bounded
from inlay.text.template import prompt_ids, render
from tests.support import templates
from tests.support.bases import tokenizer

MESSAGES = [
    {"role": "system", "content": "Be brief. <b>&amp;</b> 'quoted' ü 你好 \U0001f600"},
    {"role": "user", "content": "  what's\n2 + 2?  "},
    {
        "role": "assistant",
        "content": "4",
        "tool_calls": [{"function": {"name": "f", "arguments": {"a": [1, None, 0.5]}}}],
    },
    {"role": "tool", "content": '{"ok": true}'},
    {"role": "assistant", "content": "<think>\nhm\n</think>\nfour"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "ü < 1", "parameters": {"type": "object"}}}]
EVERYTHING = """
{#- all that honest templates use -#}
{%- macro one(m, depth=0) -%}[{{ depth }}|{{ m.role | upper }}]{%- endmacro -%}
{%- set ns = namespace(n=0, last='', found=false) -%}
{%- if tools is defined and tools %}{{ tools | tojson(indent=2) }}{{ tools | map(attribute='function.name') | join(', ') }}{% endif %}
{%- for m in messages -%}
    {%- if m.role == 'tool' %}{% continue %}{% endif -%}
    {% set ns.n = ns.n + 1 %}{% set ns.last = m.content %}
    {{ one(m, depth=loop.index0) }}{{ m['content'] | trim }}{{ m.content.split('</think>')[-1].lstrip('\\n') }}
    {%- if m.tool_calls is defined %}{{ m.tool_calls[0].function | tojson }}{% for k, v in m.tool_calls[0].function.arguments.items() %}{{ k }}={{ v }}{% endfor %}{% endif -%}
    {% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% endif %}
    {{ loop.previtem.role if loop.previtem is defined else 'first' }}{{ '%s-%03d' | format(m.role, loop.index) }}
    {%- if loop.index > 50 %}{% break %}{% endif -%}
{%- endfor -%}
{{ messages[::-1][0].role }}{{ messages | length }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ dict(a=1, b='x') }}{{ (1, 2) }}{{ 7 // 2 }}{{ none }}{{ true }}{{ missing }}{{ range(3) | list }}{{ bos_token ~ 1.0 }}
    {% block name %}
    text
    {% endblock %}
{{ ns.n }}{{ documents }}{{ add_generation_prompt }}{{ 'a' if ns.found }}{{ strftime_now('%Y') }}
"""


def theirs(tok, **how):
    return tok.apply_chat_template(MESSAGES, tokenize=False, **how)


@pytest.mark.parametrize("name", [*(name for name in templates.ALL if templates.ALL[name]), "everything"])
@pytest.mark.parametrize(
    "how", [{}, {"tools": TOOLS}, {"add_generation_prompt": True}], ids=["plain", "tools", "prompt"]
)
def test_a_template_renders_what_transformers_renders(name, how):
    tok = tokenizer(template={**templates.ALL, "everything": EVERYTHING}[name])
    assert render(tok, MESSAGES, **how) == theirs(tok, **how)


def test_the_template_for_tools_is_taken_where_there_are_several():
    tok = tokenizer()
    tok.chat_template = {"default": "plain", "tool_use": "{{ tools | tojson }}"}
    assert (render(tok, MESSAGES), render(tok, MESSAGES, tools=TOOLS)) == (theirs(tok), theirs(tok, tools=TOOLS))


def test_special_tokens_of_any_name_do_no_harm():
    tok = tokenizer(template="{{ eos_token }}{{ messages[0].role }}")
    names = ["a b", "}}{{ 1/0 }}", "in", "true", "image_token"]
    seen = {**tok.special_tokens_map, **dict.fromkeys(names, "x")}
    tok.__class__ = type("Named", (type(tok),), {"special_tokens_map": property(lambda self: seen)})
    assert render(tok, MESSAGES) == theirs(tok)


@pytest.fixture(scope="module")
def unhurried():
    """Renderers with a minute of the processor's time: asking for 1 GB of pages takes a busy machine more than 2 s."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounded, "SECONDS", 60.0)
        bounded._process().close()
        yield
    bounded._process().close()


@pytest.mark.parametrize(
    ("template", "kind", "words"),
    [
        ("{{ 1 + messages[0].content }}", DataError, "TypeError"),
        ("{{ 1 / 0 }}", DataError, "row 3: ZeroDivisionError: division by zero"),
        ("{% include 'x' %}", DataError, "TypeError: no loader"),
        ("{{ nothing.at.all }}", DataError, "UndefinedError: 'nothing' is undefined"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", DataError, "RecursionError"),
        ("{{ messages[0].content.__class__.__mro__ }}", DataError, "SecurityError"),
        ("{% set x = namespace(__class__=1) %}", DataError, "SecurityError"),
        ("{{ messages.append(1) }}", DataError, "SecurityError"),
        ("{{ range(10 ** 9) }}", DataError, "OverflowError"),
        ("{{ raise_exception('no system') }}", DataError, "refuses the messages\n  found: row 3: no system"),
        ("{% for %}", FormatError, "is not Jinja\n  found: line 1: "),
        ("{{ 'a'.center(30000000000) }}", FormatError, "more than 1 GB of memory"),
        ("{{ [0] * (10 ** 12) }}", FormatError, "more than 1 GB of memory"),
        ("{{ '%1000000000d' | format(1) | length }}", FormatError, "more than 1 GB of memory"),
        ("{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}", FormatError, "memory"),
        ("{% for i in range(99999) %}{{ messages[0].content }}{% endfor %}", FormatError, "its text has more than 1,0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_a_template_does_wrong_is_said(template, kind, words, unhurried):
    with pytest.raises(kind) as caught:
        render(tokenizer(template=template), MESSAGES, "row 3")
    assert words in str(caught.value)
    assert render(tokenizer(template=templates.CHATML), MESSAGES) == theirs(tokenizer(template=templates.CHATML))


@pytest.mark.parametrize(
    "endless", ["{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "{{ 7 ** 99999999 }}"]
)
def test_a_template_without_end_is_ended(endless, monkeypatch):
    monkeypatch.setattr(bounded, "SECONDS", 0.2)
    bounded._process().close()
    start = time.monotonic()
    with pytest.raises(FormatError, match=r"does not come to an end\n  found: row 3: it takes more than 0.2 s"):
        render(tokenizer(template=endless), MESSAGES, "row 3")
    assert time.monotonic() - start < 60
    assert render(tokenizer(template=templates.CHATML), MESSAGES)
    bounded._process().close()


@pytest.mark.parametrize(
    "messages", [[], [{"role": "user", "content": {1, 2}}], [{"content": "a"}], [{"role": 1}]], ids=repr
)
def test_messages_of_another_form_are_refused_or_rendered_as_transformers_does(messages):
    tok = tokenizer(template=templates.CHATML)
    try:
        expected = tok.apply_chat_template(messages, tokenize=False)
    except Exception:
        with pytest.raises(DataError):
            render(tok, messages)
    else:
        assert render(tok, messages) == expected


def test_half_characters_pass():
    assert (
        render(tokenizer(template="{{ messages[0].content }}"), [{"role": "user", "content": "a\ud800"}]) == "a\ud800"
    )


def test_an_interrupted_text_is_not_the_next_ones_answer(monkeypatch):
    tok = tokenizer(template="{{ messages[0].content }}")
    render(tok, MESSAGES)
    process = bounded._process()

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(bounded.struct, "unpack", stop)
    with pytest.raises(KeyboardInterrupt):
        render(tok, MESSAGES)
    monkeypatch.undo()
    assert process._process.returncode is not None
    assert render(tok, [{"role": "user", "content": "next"}]) == "next"


def test_a_forked_process_has_a_renderer_of_its_own():
    tok = tokenizer(template="{{ messages[0].content }}")
    render(tok, MESSAGES)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, render(tok, [{"role": "user", "content": "child"}]).encode())
        bounded._process().close()
        os._exit(0)
    assert render(tok, [{"role": "user", "content": "parent"}]) == "parent"
    assert os.read(read, 99) == b"child"
    assert os.waitpid(child, 0)[1] == 0
    os.close(read), os.close(write)


def test_the_renderer_imports_nothing_of_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit")
    (tmp_path / "jinja2.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    bounded._process().close()
    assert render(tokenizer(template=templates.CHATML), MESSAGES)


@pytest.mark.parametrize("template", ["{{ messages[0].__class__ }}", "{# nothing #}"])
def test_a_template_without_any_text_is_refused(template):
    with pytest.raises(DataError, match=r"makes no text of the prompt\n  found: 'hi'"):
        prompt_ids(tokenizer(template=template), "hi")
