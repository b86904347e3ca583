"""HTML that is escaped by default: model output is hostile text, and goes into pages that people open."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


class Markup(str):
    """Text that is HTML already. Everything else is escaped on its way into an element."""

    __slots__ = ()


VOID_TAGS = frozenset({"img", "input", "meta", "br"})


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """One HTML element.

    Args:
        tag: its name.
        children: `Markup` goes in as it is; anything else is turned into text and escaped; None is left out.
        attributes: escaped values; a trailing underscore is dropped (`class_`), other underscores become hyphens;
            True gives a bare attribute, None and False leave it out.

    Returns:
        The element.
    """
    parts = [tag]
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = name.rstrip("_").replace("_", "-")
        parts.append(name if value is True else f'{name}="{escape(str(value), quote=True)}"')
    opening = f"<{' '.join(parts)}>"
    return Markup(opening if tag in VOID_TAGS else f"{opening}{join(*children)}</{tag}>")


def join(*children: object) -> Markup:
    """Children side by side, each escaped unless it is `Markup`."""
    return Markup(
        "".join(
            child if isinstance(child, Markup) else escape(str(child), quote=True)
            for child in children
            if child is not None
        )
    )


def table(
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
    keys: Sequence[str],
    *,
    words: Sequence[str] = (),
    sortable: bool = False,
) -> Markup:
    """A table whose first column heads its rows, in a container that scrolls sideways on a narrow screen.

    Args:
        caption: what the table shows; for screen readers, where the text around it says so for all.
        header: one name per column.
        rows: one cell per column.
        keys: one per row, written as `data-key` for the style sheet.
        words: columns that hold words, set flush left; the others are aligned on their digits.
        sortable: marked for the script, which makes its column names buttons.

    Returns:
        The table in its container.
    """
    sides = ["words" if name in words else None for name in header]
    names = [element("th", name, scope="col", class_=side) for name, side in zip(header, sides, strict=True)]
    head = element("thead", element("tr", *names))
    lines = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(element("td", cell, class_=side) for cell, side in zip(row[1:], sides[1:], strict=True)),
            data_key=key,
        )
        for key, row in zip(keys, rows, strict=True)
    ]
    marked = "sortable" if sortable else None
    content = element("table", element("caption", caption), head, element("tbody", *lines), class_=marked)
    return element("div", content, class_="scroll", tabindex=0, role="region", aria_label=caption)
