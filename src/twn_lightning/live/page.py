"""The page: a form for questions, a place for the answer, and the run's decisions."""

from __future__ import annotations

from importlib.resources import files

from twn_lightning.live.limits import Limits
from twn_lightning.live.model import RunModel
from twn_lightning.reporting.gallery import gallery
from twn_lightning.reporting.markup import Markup, element, join
from twn_lightning.reporting.page import asset, content_policy, header, page, run_list, section
from twn_lightning.reporting.read import ReportData, RunRecord
from twn_lightning.reporting.tables import percent

CONNECT = "'self'"


def look_page(model: RunModel, run: RunRecord, data: ReportData | None) -> tuple[str, str]:
    """The page and its content security policy.

    Args:
        model: that answers.
        run: its folder.
        data: the run's decisions, where it has some.

    Returns:
        HTML, and the policy to send with it.
    """
    script = _asset("live.js")
    links = {"ask": "Ask", "examples": "Decisions", "provenance": "Run"}
    content = page(
        f"twn inspect: {run.path.name}",
        header(f"twn inspect · {run.path}", "A live look", _about(model), [], links),
        section("ask", "Ask", _form(model, model.limits), note=_ASK_NOTE),
        _answer(),
        section("examples", "Decisions", gallery(data) if data else element("p", _NO_DECISIONS, class_="note")),
        section("provenance", "Run", run_list([run], None)),
        style=_asset("live.css"),
        script=script,
        connect=CONNECT,
    )
    return content, content_policy(asset("report.js") + script, CONNECT)


_ASK_NOTE = (
    "Drop a picture or a video, type a question, or both. The model reads it without and with a chain of thought, so "
    "that you see what thinking changes, whatever the gate decides."
)
_NO_DECISIONS = "This run has no recorded decisions: twn evaluate writes them."


def _asset(name: str) -> str:
    return files("twn_lightning.live").joinpath("assets").joinpath(name).read_text(encoding="utf-8")


def _about(model: RunModel) -> str:
    corpus, gate = model.corpus, model.encoder.gate
    tasks = len(corpus.rows)
    found = f"{len(corpus.items):,} candidates of {tasks} task{'s' if tasks > 1 else ''}"
    left_out = f" ({corpus.left_out:,} more are left out)" if corpus.left_out else ""
    decides = (
        "no gate: train one with stage=gate"
        if gate is None
        else f"the gate thinks above p = {percent(model.encoder.threshold)}"
    )
    return f"{model.encoder.model_name()} among {found}{left_out}; {decides}."


def _form(model: RunModel, limits: Limits) -> Markup:
    tasks = [element("option", "all", value="")] + [element("option", name, value=name) for name in model.corpus.rows]
    drop = element(
        "label",
        element("input", type="file", id="file", accept="image/*,video/*", class_="hidden-field"),
        element("img", id="preview", alt="", hidden=True),
        element("span", "Drop a picture or a video here, paste one, or choose a file", id="drop-text"),
        id="drop",
    )
    text = element(
        "textarea", "", id="question", rows=3, maxlength=limits.text_characters, placeholder="start a1 follow 2"
    )
    words = element(
        "div",
        element("label", element("span", "Question"), text),
        element("label", "Neighbours from ", element("select", *tasks, id="task")),
        element(
            "div",
            element("button", "Ask", type="submit", id="send"),
            element("button", "Clear", type="button", id="clear"),
            element("output", aria_live="polite", id="state"),
            class_="buttons",
        ),
    )
    return join(
        element("form", drop, words, id="ask-form", data_limit=limits.media_bytes),
        element("noscript", element("p", "Asking needs scripts; the decisions below do not.", class_="note")),
    )


def _answer() -> Markup:
    names = [("probability", "p(think)"), ("decision", "the gate"), ("tokens", "CoT tokens"), ("time", "time")]
    tiles = [
        element("div", element("dt", title), element("dd", element("span", id=f"answer-{name}"), element("small")))
        for name, title in names
    ]
    lists = [
        element("div", element("h3", title), element("ol", id=f"near-{mode}"), class_="near")
        for mode, title in (("discriminative", "Neighbours without CoT"), ("generative", "Neighbours with CoT"))
    ]
    return element(
        "section",
        element("h2", "Answer", id="answer-title", tabindex=-1),
        element("dl", *tiles, class_="tiles"),
        element("h3", "Chain of thought"),
        element("pre", id="cot", tabindex=0),
        element("div", *lists, class_="pair"),
        id="answer",
        aria_labelledby="answer-title",
        hidden=True,
    )
