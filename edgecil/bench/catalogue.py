"""The table of all protocols for the documents: ``python -m edgecil.bench.catalogue``."""

from __future__ import annotations

from collections.abc import Sequence

from edgecil.bench.protocol import Protocol
from edgecil.bench.protocol_files import families

COLUMNS = ("protocol", "data", "increments", "order", "network", "epochs", "source")


def markdown() -> str:
    """Return a Markdown table of the protocols, one row for those that differ in the split only."""
    rows = [_row(family, list(members.values())) for family, members in families().items()]
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _row(family: str, members: Sequence[Protocol]) -> tuple[str, ...]:
    one = members[0]
    epochs = one.epochs or (one.training.epochs if one.training else None)
    return (
        f"`{family}`" if one.name == family else f"`{family}-*`",
        one.layout if one.subset == "all" else f"{one.layout}, {one.subset}",
        ", ".join(_increments(made) for made in members),
        one.order,
        one.arch,
        str(epochs or "auto"),
        ", ".join(one.source.split(", ")[:2]) or "our own",
    )


def _increments(made: Protocol) -> str:
    return made.split if isinstance(made.split, str) else " + ".join(map(str, made.split))


if __name__ == "__main__":
    print(markdown(), end="")
