"""The page at `/` in a browser: it does what it says, with the keyboard alone too, and no text becomes markup."""

import json
import re
import shlex
import subprocess
import sys
import types

import httpx
import pytest
from playwright.sync_api import expect, sync_playwright

from inlay.base.load import load
from inlay.http.access import Access, Caller
from inlay.http.server import Setup
from tests.support import servers
from tests.support.scripts import chromium

CHROMIUM = chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

PATIENCE = 30_000
"""Milliseconds that a busy machine may take for a step."""

expect.set_options(timeout=PATIENCE)
KEY = "a-key-of-the-tests"
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"
QUOTES = """it's "so" $HOME `id` $(id) \\ !! #\n<<EOF %s"""
"""What a shell, or Python, would take for something else than text."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A base that goes on for long, and adapters on it."""
    directory, adapters = servers.made(tmp_path_factory.mktemp("tiny"))
    configuration = json.loads((directory / "config.json").read_text("utf-8"))
    (directory / "config.json").write_text(json.dumps(configuration | {"max_position_embeddings": 2048}), "utf-8")
    return types.SimpleNamespace(base=load(directory, dtype="float32"), directory=directory, adapters=adapters)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def opened(browser):
    """A function that opens the page of a server; at the end nothing has gone wrong that a test did not expect."""
    contexts, wrong, foreign, hosts = [], [], [], set()

    def look(address, *, expects=(), before="", **settings):
        context = browser.new_context(permissions=["clipboard-read", "clipboard-write"], **settings)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.add_init_script(before)
        hosts.add(address)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(f"a dialog: {dialog.message}"), dialog.dismiss()))
        page.on("console", lambda line: wrong.append(line.text) if not _is_expected(line, expects) else None)
        page.on("request", lambda request: foreign.append(request.url))
        page.goto(f"{address}/")
        return page

    yield look
    for context in contexts:
        context.close()
    assert wrong == []
    assert [url for url in foreign if not url.startswith(tuple(hosts))] == []


def _is_expected(line, expects):
    return any(text in line.text for text in expects)


@pytest.fixture
def page(opened, served):
    return opened(served.address)


def choose(page, *names):
    """Choose these models and no others."""
    expect(page.locator("#model-list input").first).to_be_attached()
    for box in page.locator("#model-list input").all():
        box.set_checked(box.get_attribute("value") in names)


def ask(page, text, *, temperature="0", most="8", ends="done"):
    """Send a message, and wait for the end of all answers."""
    page.fill("[name=temperature]", temperature)
    page.fill("[name=max_tokens]", most)
    page.fill("#message", text)
    page.click("#send")
    expect(page.locator("#status")).to_contain_text(ends)
    expect(page.locator("#stop")).to_be_disabled()


def answer(page, model):
    """The last answer of a model."""
    return page.locator(f"article[aria-label={json.dumps(model)}]").last


def said(page, model):
    return answer(page, model).locator(".text").text_content()


def marked(page):
    """The texts that are marked as different."""
    return page.evaluate("[...CSS.highlights.get('differs') ?? []].map(String)")


def wanted(served, model, messages, **settings):
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 8, **settings}
    return httpx.post(f"{served.address}/v1/chat/completions", json=body).json()


def test_models_answer_side_by_side_as_the_server_answers_each(page, served):
    choose(page, "tiny", "red", "green")
    ask(page, "hi")
    for model in ("tiny", "red", "green"):
        alone = wanted(served, model, [{"role": "user", "content": "hi"}])
        assert said(page, model) == alone["choices"][0]["message"]["content"]
        digests = [button.get_attribute("title") for button in answer(page, model).locator(".digests button").all()]
        assert digests == [one for one in (alone["usage"]["base_digest"], alone["usage"]["adapter_digest"]) if one]
        number = alone["usage"]["completion_tokens"]
        facts = answer(page, model).locator(".facts").inner_text().replace("\u00a0", " ")
        assert re.fullmatch(rf"{number} tokens · \d+ tokens/s · first after \d+ ms( · cut off by length)?", facts)
    boxes = [answer(page, model).bounding_box() for model in ("tiny", "red", "green")]
    assert len({round(box["y"]) for box in boxes}) == 1, "side by side"
    assert len({box["x"] for box in boxes}) == 3
    first = [re.match(r"\s*(\S+)", said(page, model))[1] for model in ("tiny", "red", "green")]
    assert sorted(marked(page)) == sorted(first)
    expect(page.locator(".difference")).to_have_text("They differ first at word 1.")
    answer(page, "red").locator(".digests button").last.click()
    assert page.evaluate("navigator.clipboard.readText()") == served.service.slots.digest("red")


def test_each_model_goes_on_with_its_own_answers(page, served):
    choose(page, "tiny", "red")
    page.fill("#system", "be short")
    ask(page, "hi")
    first = said(page, "red")
    ask(page, "more")
    messages = [("system", "be short"), ("user", "hi"), ("assistant", first), ("user", "more")]
    alone = wanted(served, "red", [{"role": role, "content": content} for role, content in messages])
    assert said(page, "red") == alone["choices"][0]["message"]["content"]
    page.fill("#message", "a draft")
    page.click(".turn:last-child .edit")
    expect(page.locator("#fault")).to_contain_text("would be lost")
    page.fill("#message", "")
    page.click(".turn:last-child .edit")
    assert page.input_value("#message") == "more"
    assert page.locator(".turn").count() == 1
    ask(page, "other")
    messages[-1] = ("user", "other")
    alone = wanted(served, "red", [{"role": role, "content": content} for role, content in messages])
    assert said(page, "red") == alone["choices"][0]["message"]["content"]


def test_a_text_is_continued_as_it_stands(page, served):
    choose(page, "red")
    page.check("#as-text")
    ask(page, "u: hi;a: ", most="")
    body = {"model": "red", "prompt": "u: hi;a: ", "temperature": 0, "max_tokens": 16, "logprobs": 5}
    alone = httpx.post(f"{served.address}/v1/completions", json=body).json()["choices"][0]
    assert said(page, "red") == alone["text"]
    answer(page, "red").locator(".token").nth(3).hover()
    assert f"{alone['logprobs']['token_logprobs'][3]:.4f}".replace("-", "−") in page.text_content("#tip")


def test_a_token_says_how_likely_it_was_and_what_else_could_have_stood_there(page, served):
    choose(page, "red")
    ask(page, "hi")
    alone = wanted(served, "red", [{"role": "user", "content": "hi"}], logprobs=True, top_logprobs=5)
    known = alone["choices"][0]["logprobs"]["content"]
    tokens = answer(page, "red").locator(".token")
    assert tokens.all_text_contents() == [one["token"] for one in known]
    tokens.nth(2).hover()
    _says(page, known[2])
    page.mouse.move(0, 0)
    expect(page.locator("#tip")).to_be_hidden()
    answer(page, "red").locator(".text").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "End", "ArrowLeft"):
        page.keyboard.press(key)
    _says(page, known[-2])
    assert page.evaluate("document.activeElement.getAttribute('aria-describedby')") == "tip"


def _says(page, known):
    expect(page.locator("#tip p")).to_contain_text(f"{known['logprob']:.4f}".replace("-", "−"))
    rows = [row.split("\t") for row in page.locator("#tip tr").all_inner_texts()]
    assert [json.loads(row[0]) for row in rows] == [top["token"] for top in known["top_logprobs"]]
    assert [row[1] for row in rows] == [f"{top['logprob']:.4f}".replace("-", "−") for top in known["top_logprobs"]]


def test_answers_come_in_parts_and_stop_when_they_are_told_to(page, served):
    choose(page, "red", "green")
    page.fill("#other", '{"ignore_eos": true}')
    page.fill("[name=max_tokens]", "1500")
    page.fill("#message", "hi")
    page.keyboard.press("Control+Enter")
    for model in ("red", "green"):
        expect(answer(page, model)).to_have_attribute("data-state", "streams")
    before = len(said(page, "red"))
    page.wait_for_timeout(300)
    assert len(said(page, "red")) > before > 0
    page.keyboard.press("Escape")
    expect(page.locator("#status")).to_contain_text("2 stopped")
    length = len(said(page, "red"))
    for _ in range(50):
        if not served.service.worker.num_open:
            break
        page.wait_for_timeout(20)
    assert served.service.worker.num_open == 0, "the server computes them no more"
    assert (len(said(page, "red")), answer(page, "red").get_attribute("data-state")) == (length, "stopped")
    page.fill("#message", "more")
    page.click("#send")
    expect(answer(page, "red")).to_have_attribute("data-state", "streams")
    page.click("#new")
    expect(page.locator("#status")).to_contain_text("2 stopped")
    ask(page, "hi", ends="2 done")
    entries = page.evaluate("JSON.parse(localStorage.getItem('inlay.history.1')).map((one) => one.turns.length)")
    assert entries == [1, 2], "what was left is kept as it was left"


def test_what_the_server_refuses_stands_in_the_column_that_it_refuses(opened, served):
    page = opened(served.address, expects=["status of 400"])  # the browser itself logs each request that is refused
    choose(page, "red")
    for field, value, found in (
        ("[name=top_p]", "2", "top_p: Input should be less than or equal to 1"),
        ("[name=max_tokens]", "100000", "prompt and answer are too long"),
    ):
        page.fill(field, value)
        page.fill("#message", "hi")
        page.click("#send")
        expect(answer(page, "red").locator(".error")).to_contain_text(found)
        page.fill(field, "")
        page.click("#new")


def test_a_list_that_can_not_be_had_is_said_and_asked_for_again(opened, served):
    page = opened(served.address, expects=["ERR_FAILED"])
    fault = page.locator("#list-fault")
    focus = "window.dispatchEvent(new Event('focus'))"
    expect(page.locator("#model-list input")).to_have_count(4)
    base = {"id": "vectors", "parent": None, "root": "vectors", "answers": ["embeddings"], "chat_template": "plain"}
    listed = [base]
    page.route("**/v1/models", lambda route: route.fulfill(json={"data": listed}))
    page.evaluate(focus)
    expect(fault).to_contain_text("it is served for embeddings")
    listed.clear()
    page.evaluate(focus)
    expect(fault).to_contain_text("there is no model that may be asked")
    page.unroute("**/v1/models")
    page.route("**/v1/models", lambda route: route.abort())
    page.evaluate(focus)
    expect(fault).to_contain_text("the server can't be reached")
    page.unroute("**/v1/models")
    page.evaluate(focus)
    expect(fault).to_be_empty()
    expect(page.locator("#model-list input")).to_have_count(4)


def test_what_can_not_be_sent_is_said_before_it_is(page):
    choose(page)
    fault = page.locator("#fault")
    page.fill("#message", "hi")
    page.click("#send")
    expect(fault).to_contain_text("no model is chosen")
    choose(page, "red")
    for field, value, found in (
        ("[name=temperature]", "warm", "temperature is no number\n  found: warm"),
        ("[name=seed]", "9007199254740993", "seed is no whole number"),
        ("#other", "{", "other fields are not JSON"),
        ("#other", "[1]", "other fields are no JSON object"),
        ("#other", '{"n": 2}', "found: n"),
    ):
        page.fill(field, value)
        page.click("#send")
        expect(fault).to_contain_text(found)
        page.fill(field, "")
    page.fill("#message", " ")
    page.click("#send")
    expect(fault).to_contain_text("there is nothing to answer")
    assert page.locator(".turn").count() == 0


def _copied(page, model, kind):
    answer(page, model).get_by_role("button", name=f"Copy {kind} of").click()
    expect(page.locator("#status")).to_have_text(f"Copied: {kind}.")
    return page.evaluate("navigator.clipboard.readText()")


@pytest.mark.parametrize("is_text", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_is_copied_runs_and_has_the_same_answer(page, served, is_text):
    choose(page, "red")
    page.set_checked("#as-text" if is_text else "#as-chat", True)
    page.fill("#other", '{"repetition_penalty": 1.1, "logit_bias": {"5": -1}, "stop": ["~~"], "user": null}')
    page.fill("[name=top_k]", "7")
    ask(page, QUOTES, temperature="0.7")
    body = page.evaluate("JSON.parse(localStorage.getItem('inlay.history.1'))[0].turns[0].answers[0].body")
    assert body["seed"] == int(re.search(r"seed\s(\d+)", answer(page, "red").locator(".facts").text_content())[1])
    command = _copied(page, "red", "curl")
    assert json.loads(shlex.split(command)[-1]) == body
    assert (body["prompt"] if is_text else body["messages"][-1]["content"]) == QUOTES
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=60)
    choice = json.loads(ran.stdout)["choices"][0]
    assert (choice["text"] if is_text else choice["message"]["content"]) == said(page, "red")
    code = _copied(page, "red", "Python")
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert ran.stdout == said(page, "red") + "\n"


def test_history_is_kept_put_back_and_cleared(page):
    expect(page.locator("#model-count")).to_have_text("3 of 4")
    page.reload()
    expect(page.locator("#model-count")).to_have_text("3 of 4")  # nobody chose yet
    choose(page, "tiny", "green")
    page.fill("#system", "be short")
    ask(page, "hi")
    ask(page, "more")
    texts, marks = [said(page, model) for model in ("tiny", "green")], marked(page)
    for _ in range(2):  # a visit without a change keeps it for the next
        page.reload()
        expect(page.locator("#model-count")).to_have_text("2 of 4")
    assert page.input_value("#system") == "be short", "settings are there at the next visit"
    choose(page, "red")
    page.fill("#system", "")
    page.click("#open-history")
    page.click("#history-list .entry")
    assert page.locator(".turn").count() == 2
    assert [said(page, model) for model in ("tiny", "green")] == texts
    assert marked(page) == marks != []
    answer(page, "green").locator(".token").first.hover()
    expect(page.locator("#tip")).to_be_visible()
    expect(page.locator("#model-count")).to_have_text("2 of 4")
    assert page.input_value("#system") == "be short"
    ask(page, "and")
    page.click("#open-history")
    assert page.locator("#history-list .entry").count() == 1, "the same conversation, further on"
    page.click("#clear")
    expect(page.locator("#history-list")).to_have_text("Nothing yet.")
    assert page.evaluate("localStorage.getItem('inlay.history.1')") == "[]"


def test_history_is_bounded(page):
    kept = page.evaluate("""async () => {
        const history = await import('/static/history.js');
        const entry = (id, length) => ({ id, turns: [{ said: 'x'.repeat(length), answers: [] }] });
        for (let id = 0; id < 60; id += 1) history.put(entry(id, 10));
        const many = history.all().map((one) => one.id);
        for (let id = 100; id < 105; id += 1) history.put(entry(id, 700_000));
        const large = history.all().map((one) => one.id);
        return [many, large, history.put(entry(200, 3_000_000)), history.all().length];
    }""")
    assert kept == [list(range(59, 9, -1)), [104, 103], False, 2]


def test_where_the_browser_keeps_and_copies_nothing_it_works_all_the_same(opened, served):
    refuse = "() => { throw new DOMException('not here', 'SecurityError'); }"
    denied = "".join(
        f"Object.defineProperty(window, '{name}Storage', {{get: {refuse}}});" for name in ("local", "session")
    )
    page = opened(served.address, before=denied + "Object.defineProperty(navigator, 'clipboard', {value: undefined});")
    choose(page, "red")
    ask(page, "hi", ends="1 done. There is no room to keep this.")
    answer(page, "red").get_by_role("button", name="Copy text of").click()
    assert page.input_value("#copy-text") == said(page, "red")
    assert page.evaluate("String(getSelection())") == said(page, "red")
    page.keyboard.press("Escape")
    page.click("#open-history")
    expect(page.locator("#history-list")).to_have_text("Nothing yet.")


def test_no_more_models_are_asked_than_a_browser_can_ask_at_once(page):
    about = {"root": "m0", "digest": None, "answers": ["chats", "completions"], "chat_template": "own"}
    listed = {"data": [{"id": f"m{number}", "parent": number and "m0", **about} for number in range(9)]}
    listed["data"][0]["parent"] = None
    listed["data"] += [{"id": f"m0:m{number}", "parent": "m0", **about} for number in range(1, 9)]
    page.route("**/v1/models", lambda route: route.fulfill(json=listed))
    page.reload()
    expect(page.locator("#model-count")).to_have_text("3 of 9")
    boxes = page.locator("#model-list input")
    for number in (3, 4, 5):
        expect(boxes.nth(6)).to_be_enabled()
        boxes.nth(number).check()
    expect(page.locator("#model-count")).to_contain_text("6 of 9")
    assert [box.is_disabled() for box in boxes.all()] == [False] * 6 + [True] * 3
    page.fill("#filter", "M8")
    assert [box.is_visible() for box in boxes.all()] == [False] * 8 + [True]


def test_a_key_is_asked_for_and_kept_for_the_tab_alone(opened, tiny, monkeypatch, capsys):
    setup = Setup(
        directories=(tiny.adapters,), cache_tokens=512, access=Access({KEY: Caller("me", frozenset(["red"]))})
    )
    with servers.running(tiny.base, setup) as (_, address):
        page = opened(address, expects=["status of 401"])
        expect(page.locator("#key-text")).to_be_focused()
        for wrong, says in (("not the key of it", "no blanks"), ("another-key-of-it", "this key is not known")):
            page.keyboard.type(wrong)
            page.keyboard.press("Enter")
            expect(page.locator("#key-note")).to_contain_text(says)
            page.fill("#key-text", "")
        page.keyboard.type(KEY)
        page.keyboard.press("Enter")
        expect(page.locator("#key")).to_be_hidden()
        assert [box.get_attribute("value") for box in page.locator("#model-list input").all()] == ["red"]
        ask(page, "hi")
        assert said(page, "red")
        monkeypatch.setenv("INLAY_API_KEY", KEY)
        command, code = (_copied(page, "red", kind) for kind in ("curl", "Python"))
        assert KEY not in command + code
        ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=60)
        assert json.loads(ran.stdout)["choices"][0]["message"]["content"] == said(page, "red")
        exec(code, {})
        assert capsys.readouterr().out == said(page, "red") + "\n"
        page.reload()
        expect(page.locator("#model-count")).to_have_text("1 of 1")
        assert KEY not in page.evaluate("JSON.stringify(localStorage)")
        assert KEY not in page.content()


def test_no_text_becomes_markup(opened, served):
    page = opened(served.address, expects=["status of 400", "requires 'TrustedHTML' assignment"])
    listed = {"data": [{"id": name, "parent": parent, "root": "tiny", "digest": HOSTILE, "answers": ["chats"]}
                       for name, parent in ((HOSTILE, None), ("red", "tiny"))]}  # fmt: skip
    page.route("**/v1/models", lambda route: route.fulfill(json=listed))
    page.reload()
    choose(page, "red", HOSTILE)
    page.fill("#other", json.dumps({"structured_outputs": {"choice": [HOSTILE]}}))
    refusal = {"status": 400, "json": {"error": {"message": HOSTILE}}}

    def reply(route):
        return route.fulfill(**refusal) if route.request.post_data_json["model"] == HOSTILE else route.continue_()

    page.route("**/v1/chat/completions", reply)
    ask(page, HOSTILE, most="200", ends="1 done, 1 failed")
    assert said(page, "red") == HOSTILE
    assert answer(page, HOSTILE).locator(".error").text_content() == HOSTILE
    answer(page, "red").locator(".token").first.hover()
    page.click("#open-history")
    assert page.locator(".entry").text_content().startswith(HOSTILE)
    assert page.locator("img, script:not([src]), [onerror]").count() == 0
    assert page.evaluate("document.scripts.length") == 1
    blocked = page.evaluate("() => { try { document.body.innerHTML = 'x'; } catch (error) { return error.name; } }")
    assert blocked == "TypeError", "the policy lets no script of the page make markup"
    page.keyboard.press("Escape")


DIFFERENCES = [  # texts, whether each is over, (the number of the word, the word in each)
    (["a b c", "a b d"], [True, True], (3, ["c", "d"])),
    (["a b c", "a b d"], [False, True], None),  # "c" may go on
    (["a b c ", "a b d"], [False, True], (3, ["c", "d"])),
    (["a b", "a b c"], [True, True], (3, [None, "c"])),
    (["a b", "a b c"], [False, True], None),
    (["", "a"], [True, True], (1, [None, "a"])),
    (["x y", "x z", ""], [True, True, False], None),
    (["x y", "z y", ""], [True, True, False], (1, ["x", "z", None])),
    (["a  b", "a\nb"], [True, True], None),
    (["a", "a", "a"], [True] * 3, None),
    (["é😀 x", "é😀 y"], [True, True], (2, ["x", "y"])),
]


def test_the_first_word_that_differs_is_found_as_soon_as_it_is_sure(page):
    for texts, are_over, expected in DIFFERENCES:
        found = page.evaluate(
            "async (given) => (await import('/static/differ.js')).firstDifference(...given)", [texts, are_over]
        )
        units = [text.encode("utf-16-le") for text in texts]
        at = found and [
            place and unit[2 * place[0] : 2 * place[1]].decode("utf-16-le")
            for unit, place in zip(units, found["places"], strict=True)
        ]
        assert (found and (found["number"], at)) == expected, texts
    words = "async (given) => (await import('/static/differ.js')).inWords(...given, null)"
    assert page.evaluate(words, [["a", "a"], [True, True]]) == "They are the same."
    assert "spaces" in page.evaluate(words, [["a  b", "a b"], [True, True]])
    assert page.evaluate(words, [["a", "a"], [True, False]]) == ""
    assert page.evaluate(words, [["a"], [True]]) == ""


def test_tokens_are_shaded_by_their_probability_and_those_of_one_character_together(page):
    parts = [
        ("😀", [("\ufffd", 0, -1.0), ("\ufffd", 0, -1.0)]),
        (" a", [(" a", 1, -0.69)]),
        ("", []),
        ("bcd", [("b", 3, -0.7), ("c", 4, -3.1), ("d", 5, -4.7)]),
    ]
    kind = {"content-type": "text/event-stream"}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=_stream(parts), headers=kind))
    choose(page, "red", "green")
    ask(page, "hi")
    tokens = answer(page, "red").locator(".token")
    assert tokens.all_text_contents() == ["😀", " a", "b", "c", "d"]
    levels = [one.get_attribute("class") for one in tokens.all()]
    assert levels == [f"token level{level}" for level in (2, 0, 1, 3, 4)]
    tokens.first.hover()
    assert page.locator("#tip > p").count() == 2
    expect(page.locator(".difference")).to_have_text("They are the same.")
    shade = "e => getComputedStyle(e).backgroundColor"
    none, most = "rgba(0, 0, 0, 0)", "rgb(238, 174, 88)"
    assert [answer(page, model).locator(".token").last.evaluate(shade) for model in ("red", "green")] == [most, none]
    page.check("#shade")
    page.mouse.move(0, 0)
    assert tokens.last.evaluate(shade) == most
    page.uncheck("#shade")
    assert tokens.last.evaluate(shade) == none


def test_an_answer_whose_connection_ends_is_not_taken_for_whole(page):
    cut = _stream([("x", [("x", 0, -1.0)])]).removesuffix("data: [DONE]\n\n")
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=cut))
    choose(page, "red")
    ask(page, "hi", ends="1 failed")
    expect(answer(page, "red").locator(".error")).to_have_text("the connection ended before the answer did")
    assert said(page, "red") == "x"


def _stream(parts):
    lines = []
    for text, tokens in parts:
        content = [
            {"token": token, "logprob": value, "text_offset": at, "top_logprobs": []} for token, at, value in tokens
        ]
        choice = {
            "index": 0,
            "delta": {"content": text},
            "logprobs": {"content": content} if content else None,
            "finish_reason": None,
        }
        lines.append({"choices": [choice], "usage": None})
    return "".join(f"data: {json.dumps(line)}\n\n" for line in lines) + "data: [DONE]\n\n"


def test_the_keyboard_alone_does_all(page):
    keys = page.keyboard
    expect(page.locator("#model-list input").first).to_be_attached()
    order = []
    for _ in range(9):
        keys.press("Tab")
        order.append(
            page.evaluate("document.activeElement.id || document.activeElement.value || document.activeElement.tagName")
        )
    assert order == ["A", "new", "open-history", "open-help", "SUMMARY", "filter", "tiny", "blue", "green"]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", "focus is seen"
    keys.press("?")
    expect(page.locator("#help")).to_be_visible()
    keys.press("Escape")
    expect(page.locator("#help")).to_be_hidden()
    for _ in range(3):
        page.locator("#model-list input:checked").first.focus()
        keys.press("Space")
    for name in ("red", "gre"):
        keys.press("/")
        page.fill("#filter", "")
        keys.type(name)
        keys.press("Enter")
        page.fill("#filter", "")
        page.locator("#model-list input").first.focus()
    expect(page.locator("#model-count")).to_have_text("2 of 4")
    keys.press("s")
    assert page.evaluate("document.activeElement.id") == "as-chat"
    keys.press("Tab")
    keys.press("Tab")
    assert page.evaluate("document.activeElement.name") == "temperature"
    keys.press("Tab")
    keys.type("8")
    keys.press("Shift+Tab")
    keys.press("Shift+Tab")
    keys.press("Shift+Tab")
    keys.press("m")
    keys.type("hi?")
    keys.press("Control+Enter")
    expect(page.locator("#status")).to_contain_text("2 done")
    assert said(page, "red") != said(page, "green")
    keys.press("Shift+Tab")
    keys.press("h")
    expect(page.locator("#history")).to_be_visible()
    keys.press("Escape")
    keys.press("e")
    assert page.input_value("#message") == "hi?"


@pytest.mark.parametrize("scheme", ["dark", pytest.param("light", marks=pytest.mark.slow)])
def test_a_phone_shows_it_without_going_sideways(opened, served, scheme):
    page = opened(served.address, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    expect(page.locator("#settings")).not_to_have_attribute("open", "")
    page.click("#settings summary")
    choose(page, "tiny", "red")
    ask(page, "a" * 200 + " hi", most="60")
    fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    assert page.evaluate(fits)
    one, other = (answer(page, model).bounding_box() for model in ("tiny", "red"))
    assert one["x"] == other["x"]
    assert other["y"] >= one["y"] + one["height"], "columns stand one above the other"
    for button in ("#open-history", "#open-help"):
        page.click(button)
        assert page.evaluate(fits)
        page.keyboard.press("Escape")
    answer(page, "tiny").locator(".token").last.hover()
    box = page.locator("#tip").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360
    ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(15, 18, 22)"}[scheme]
