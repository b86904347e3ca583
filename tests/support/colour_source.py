"""A source of seven queries with CoTs, small enough to say what every probe of them must find."""

from __future__ import annotations

from twn_lightning.types import Item, Pair

WORDS = ("red", "green", "blue")


class ColourSource:
    """Six queries of one task, two for each of three targets, and one query of a task with a single target."""

    name = "made"
    tasks = ("colour", "lonely")

    def pairs(self, split: str, count: int) -> list[Pair]:
        made = []
        for row in range(6):
            word = WORDS[row % 3]
            kind = ("direct", "steps")[row // 3]
            query = Item(f"made/{row}/{kind}", "Find", f"query {row}", cot=cot_of(f"see {row}", word))
            made.append(Pair(query, Item(word, "", word), "colour", word, steps=row))
        lonely = Item("made/6/lookalike", "Find", "the only one", cot=cot_of("alone", "grey"))
        return [*made, Pair(lonely, Item("grey", "", "grey"), "lonely", "grey", steps=0)][:count]

    def candidates(self, split: str, task: str) -> list[Item]:
        words = WORDS if task == "colour" else ("grey", "black")
        return [Item(word, "", word) for word in words]


def cot_of(thought: str, answer: str) -> str:
    return f"<think>{thought}</think><answer>{answer}</answer>"
