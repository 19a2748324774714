"""``edgecil bench``: compare methods under a protocol that can be repeated."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgecil.errors import EdgecilError, UsageError
from edgecil.units import format_bytes, parse_bytes
from edgecil_cli._options import EXPERT, MEMORY, DeviceOption, JsonOption, QuietOption, value
from edgecil_cli._output import Output, percent, short
from edgecil_cli._tables import GAP, NARROWEST, Column

if TYPE_CHECKING:
    from edgecil.bench.paired import Difference, Interval
    from edgecil.bench.pool import Outcome
    from edgecil.bench.results import Result
    from edgecil.bench.runner import Run

EPILOG = """\
Examples:

  edgecil bench

  edgecil bench quick --data cifar100/ --methods lwm,lwf-mc --seeds 0,1

  edgecil bench quick --data cifar100/ --methods lwm:gamma=0.2,lwm:gamma=0.5

  edgecil bench quick --out bench/quick --against lwf-mc
"""


def complete_protocol(incomplete: str) -> list[tuple[str, str]]:
    """Return the protocols whose names begin so, with what is learned."""
    from edgecil.bench.protocol_files import protocols

    return [(n, p.summary) for n, p in protocols().items() if n.startswith(incomplete)]


class Precision(StrEnum):
    """Arithmetic of the forward passes."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class Spread(StrEnum):
    """Divisor of a standard deviation: one less than the number of seeds, or their number."""

    sample = "sample"
    population = "population"


def bench(
    protocol: Annotated[
        str | None,
        typer.Argument(
            metavar="PROTOCOL",
            help="Name, or a .toml file of your own.",
            autocompletion=complete_protocol,
        ),
    ] = None,
    data: Annotated[Path | None, value("Folder of the protocol's data set.", "DIR")] = None,
    methods: Annotated[
        str | None, value("Methods, with options as lwm:gamma=0.2.", "A,B,C")
    ] = None,
    seeds: Annotated[str, value("One run of every method for each.", "0,1,2")] = "0",
    jobs: Annotated[int, value("Runs side by side, one thread each.", "N")] = 1,
    out: Annotated[
        Path | None, value("Results, table and plots; default: bench/PROTOCOL.", "DIR")
    ] = None,
    against: Annotated[
        str | None, value("The others' differences to this row, paired over seeds.", "NAME")
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    memory_budget: Annotated[str | None, value("Bytes each method may keep.", "SIZE", MEMORY)] = (
        None
    ),
    exemplars_per_class: Annotated[
        int | None, value("So many exemplars of each class.", "N", MEMORY)
    ] = None,
    exemplars_total: Annotated[int | None, value("So many exemplars in all.", "N", MEMORY)] = None,
    codec: Annotated[
        str | None,
        value("Exemplars as raw, png, webp-lossless, jpeg-NN; default: by limit.", "NAME", EXPERT),
    ] = None,
    exemplar_size: Annotated[
        int | None, value("Pixels a side of a stored exemplar; at most as decoded.", "PX", EXPERT)
    ] = None,
    epochs: Annotated[int | None, value("Instead of the protocol's.", "N", EXPERT)] = None,
    batch_size: Annotated[int | None, value("Images per step.", "N", EXPERT)] = None,
    lr: Annotated[float | None, value("Learning rate at the start.", "X", EXPERT)] = None,
    precision: Annotated[
        Precision, value("auto (by timing), float32 or bfloat16.", "NAME", EXPERT)
    ] = Precision.auto,
    spread: Annotated[
        Spread, value("Deviations in the table: of a sample or a population.", "NAME", EXPERT)
    ] = Spread.sample,
) -> None:
    """Compare methods under a protocol that can be repeated."""
    output = Output("bench", as_json=as_json, quiet=quiet)
    if protocol is None:
        _list(output)
        return
    settings = {
        "memory_budget": None if memory_budget is None else parse_bytes(memory_budget),
        "exemplars_per_class": exemplars_per_class, "exemplars_total": exemplars_total,
        "codec": codec, "exemplar_size": exemplar_size, "epochs": epochs,
        "batch_size": batch_size, "lr": lr,
    }  # fmt: skip
    from edgecil.bench import paired, pool, report
    from edgecil.bench.protocol_files import protocol as find
    from edgecil.bench.runner import Run, Variant

    chosen = find(protocol)
    folder = out or Path("bench") / chosen.name
    given = {k: v for k, v in settings.items() if v is not None}
    runs = [
        Run(chosen, Variant.parse(text), seed, given, precision.value, device)
        for seed in _numbers(seeds)
        for text in (methods.split(",") if methods else [])
    ]
    if data is not None and not runs:
        raise UsageError("--methods is missing", hint="like --methods lwm,lwf-mc")
    if runs:
        _run(output, runs, data, folder, jobs, pool)
    made = report.write(folder, chosen, spread=spread.value)
    if output.for_people:  # whatever --against says: the runs were made
        _show(output, made.results)
    compared = [] if against is None else paired.differences(made.results, against)
    rows = [_row(r) for r in made.results]
    output.result(
        {"results": rows, "against": against, "differences": compared, "files": made.files},
        value_only=str(folder),
    )
    if output.for_people:
        if against is not None:
            _show_differences(output, against, compared)
        output.pairs([("table, plots", ", ".join(short(path) for path in made.files))])


def _run(
    output: Output, runs: list[Run], data: Path | None, folder: Path, jobs: int, pool: Any
) -> None:
    if data is None:
        raise UsageError("--data is missing", hint="the folder of the data set: --data cifar100/")
    if jobs < 1:
        raise UsageError(f"--jobs must be at least 1, got {jobs}")
    outcomes = pool.run_all(runs, data, folder, jobs=jobs, say=output.note)
    failed = [o for o in outcomes if o.fault]
    if failed:
        raise _failure(failed, len(outcomes), noted=output.for_people)


def _failure(failed: list[Outcome], count: int, *, noted: bool) -> EdgecilError:
    """Return the failure of some of ``count`` runs; what went wrong is ``noted``, or said here."""
    first = failed[0]
    fault = first.fault
    assert fault is not None
    text = f"{len(failed)} of {count} runs failed"
    if noted:
        names = (f"{o.run.variant} with seed {o.run.seed}" for o in failed)
        text += f": {', '.join(names)}"
    else:
        text += f"; the first, {first.run.variant} with seed {first.run.seed}: {fault.message}"
    kept = "the results of the others are kept; the same command tries these again"
    error = EdgecilError(text, hint=kept if len(failed) < count else fault.hint)
    error.code, error.exit_code = fault.code, fault.exit_code
    return error


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--seeds {text}: expected whole numbers", hint="like 0,1,2") from None


def _list(output: Output) -> None:
    from edgecil.bench.protocol_files import protocols

    known = protocols()
    rows = {name: {"summary": p.summary, "source": p.source} for name, p in known.items()}
    output.result(rows, value_only="\n".join(known))
    if output.for_people:
        # A line each, so that all are seen; --json has them in full.
        room = max(NARROWEST, output.width - max(map(len, rows)) - len(GAP))
        cells = [[name, shorten(p.summary, room, placeholder=" ...")] for name, p in known.items()]
        output.table([Column("protocol"), Column("what is learned")], cells)
        output.next("edgecil bench quick --data cifar100/ --methods lwm,lwf-mc")


def _row(result: Result) -> dict[str, Any]:
    """Return a result without what only a program that draws would want."""
    return {k: v for k, v in result.items() if k not in ("confusion", "by_increment")}


def _show(output: Output, results: list[Result]) -> None:
    from edgecil.bench.results import summaries

    columns = [
        Column("method"), Column("final", right=True), Column("average", right=True),
        Column("forgetting", right=True), Column("kept", right=True),
        Column("images/s", right=True), Column("seeds", right=True),
    ]  # fmt: skip
    rows = [
        [
            row.name, percent(row.mean("final")), percent(row.mean("average")),
            percent(row.mean("forgetting")), format_bytes(row.kept_bytes),
            "—" if row.images_per_second is None else f"{row.images_per_second:.0f}",
            str(row.seeds),
        ]
        for row in summaries(results)
    ]  # fmt: skip
    output.table(columns, rows)
    output.print()


def _show_differences(output: Output, against: str, compared: list[Difference]) -> None:
    columns = [
        Column("method"), Column("final", right=True), Column("average", right=True),
        Column("seeds", right=True),
    ]  # fmt: skip
    rows = [[d.name, _points(d.final), _points(d.average), str(d.seeds)] for d in compared]
    output.print(f"points above {against}, paired over seeds, with 95 % intervals:")
    output.table(columns, rows)
    output.print()


def _points(interval: Interval) -> str:
    """Return a difference in points; that of a single seed has no interval."""
    margin = "" if math.isinf(interval.margin) else f" ± {100 * interval.margin:.1f}"
    return f"{100 * interval.mean:+.1f}{margin}"
