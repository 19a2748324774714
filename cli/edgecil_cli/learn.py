"""``edgecil learn``: teach the classes in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from edgecil.errors import Interrupted, UsageError
from edgecil.learning.request import LearnRequest
from edgecil.units import parse_bytes, parse_seconds
from edgecil.workspace import Workspace, with_workspace
from edgecil_cli import _stop, _summary
from edgecil_cli._options import (
    EXPERT,
    MEMORY,
    DeviceOption,
    JsonOption,
    QuietOption,
    WorkspaceOption,
    complete_method,
    complete_option,
    flag,
    value,
)
from edgecil_cli._output import Output, short
from edgecil_cli._progress import listening

EPILOG = """\
Examples:

  edgecil learn --method lwm --new-data photos/

  edgecil learn --new-data more/ --test-data test/ --dry-run

  edgecil learn --new-data more/ --method icarl --memory-budget 2MB

  edgecil learn --new-data more/ --update-known

  edgecil learn --resume
"""
_ANY_TIME = {
    "workspace",
    "as_json",
    "quiet",
    "resume",
    "discard",
    "dry_run",
    "time_limit",
    "events",
}
"""Parameters that do not change what is learned."""


class Stream(StrEnum):
    """Where decoded images are read from: memory, or disk."""

    auto = "auto"
    yes = "yes"
    no = "no"


class Precision(StrEnum):
    """Arithmetic of the forward passes."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


def learn(
    ctx: typer.Context,
    new_data: Annotated[
        Path | None, value("Folder with one folder of images per new class.", "DIR")
    ] = None,
    method: Annotated[
        str | None,
        value("How to learn; default: as before, at first lwm.", "NAME", None, complete_method),
    ] = None,
    test_data: Annotated[
        Path | None, value("Test images in class folders, for this and later increments.", "DIR")
    ] = None,
    val_fraction: Annotated[
        float | None, value("Hold out this share of the new images for testing.", "X")
    ] = None,
    update_known: Annotated[
        bool, flag("--update-known", "Learn more images of known classes, too.")
    ] = False,
    epochs: Annotated[int | None, value("Passes over the images.", "N")] = None,
    seed: Annotated[int | None, value("Same seed, same result.", "N")] = None,
    dry_run: Annotated[bool, flag("--dry-run", "Print the plan and its cost; write nothing.")] = (
        False
    ),
    resume: Annotated[bool, flag("--resume", "Continue the interrupted run.")] = False,
    discard: Annotated[bool, flag("--discard", "Throw the interrupted run away first.")] = False,
    time_limit: Annotated[
        str | None, value("Stop cleanly after 90s, 45min or 2h; resume later.", "TIME")
    ] = None,
    workspace: WorkspaceOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    memory_budget: Annotated[
        str | None, value("At most so many bytes: 600kB, 2MB, 1.5MiB.", "SIZE", MEMORY)
    ] = None,
    exemplars_per_class: Annotated[
        int | None, value("So many exemplars of each class.", "N", MEMORY)
    ] = None,
    exemplars_total: Annotated[int | None, value("So many exemplars in all.", "N", MEMORY)] = None,
    options: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Option of the method; may be repeated.",
            metavar="NAME=VALUE",
            rich_help_panel=EXPERT,
            autocompletion=complete_option,
        ),
    ] = None,
    preset: Annotated[
        str | None, value("A paper's settings: edgecil methods NAME.", "NAME", EXPERT)
    ] = None,
    batch_size: Annotated[int | None, value("Images per step.", "N", EXPERT)] = None,
    lr: Annotated[float | None, value("Learning rate at the start.", "X", EXPERT)] = None,
    arch: Annotated[
        str | None, value("Network to begin with; default: by image size.", "NAME", EXPERT)
    ] = None,
    image_size: Annotated[int | None, value("Pixels of the network's input.", "N", EXPERT)] = None,
    weights: Annotated[
        str | None, value("Begin with these weights: imagenet or a file.", "FILE", EXPERT)
    ] = None,
    codec: Annotated[
        str | None,
        value("Exemplars as raw, png, webp-lossless, jpeg-NN; default: by limit.", "NAME", EXPERT),
    ] = None,
    exemplar_size: Annotated[
        int | None, value("Pixels a side of a stored exemplar; at most as decoded.", "PX", EXPERT)
    ] = None,
    skip_bad: Annotated[bool, flag("--skip-bad", "Leave damaged images out.", EXPERT)] = False,
    stream: Annotated[
        Stream | None,
        value("Read decoded images from disk; auto: if memory is short.", "auto|yes|no", EXPERT),
    ] = None,
    precision: Annotated[
        Precision | None,
        value("auto (by timing), float32 or bfloat16.", "NAME", EXPERT),
    ] = None,
    no_record_ranges: Annotated[
        bool,
        flag("--no-record-ranges", "Then int8 export needs images to calibrate.", EXPERT),
    ] = False,
    events: Annotated[
        Path | None, value("Append all progress events to a file, as JSON.", "FILE", EXPERT)
    ] = None,
) -> None:
    """Learn the new classes in a folder of images."""
    output = Output("learn", as_json=as_json, quiet=quiet)
    place = Workspace.find(workspace)
    settings = _settings(ctx.params)
    limit = None if time_limit is None else parse_seconds(time_limit)
    if resume:
        if discard or dry_run:
            raise UsageError("--resume goes with neither --discard nor --dry-run")
        budget = _another_budget(ctx, settings)
        _refuse_changes(ctx, LearnRequest.load(place.run)[0], settings, place)
        settings = budget
    elif new_data is None:
        again = "edgecil learn --discard" if discard else "edgecil learn"
        raise UsageError("--new-data is missing", hint=f"{again} --new-data dir/")
    if dry_run:
        _plan(output, settings, workspace, events)
        if place.waits:
            output.note("an interrupted run waits: to learn this takes --discard")
        return
    with _stop.gracefully() as stop:
        arguments = {"resume": resume, "discard": discard, "time_limit": limit, **settings}
        _learn(output, place, workspace, stop, events, arguments)


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``api.learn`` that the user gave; the rest is the library's."""
    names = (
        "new_data", "method", "test_data", "val_fraction", "epochs", "seed", "exemplars_per_class",
        "exemplars_total", "preset", "batch_size", "lr", "arch", "image_size", "weights", "codec",
        "exemplar_size",
    )  # fmt: skip
    settings = {name: given[name] for name in names if given[name] is not None}
    for name in ("new_data", "test_data"):
        if name in settings:
            # A resumed run may start in another folder.
            settings[name] = str(Path(settings[name]).absolute())
    if given["weights"] is not None and Path(given["weights"]).is_file():
        settings["weights"] = str(Path(given["weights"]).absolute())
    if given["memory_budget"] is not None:
        settings["memory_budget"] = parse_bytes(given["memory_budget"])
    if given["options"]:
        settings["options"] = dict(_option(text) for text in given["options"])
    for name in ("precision", "stream"):
        if given[name] is not None:
            settings[name] = given[name].value
    settings |= {name: True for name in ("skip_bad", "update_known") if given[name]}
    if given["no_record_ranges"]:
        settings["record_ranges"] = False
    return {**settings, "device": given["device"]}


def _option(text: str) -> tuple[str, str]:
    name, equals, setting = text.partition("=")
    if not (name and equals):
        raise UsageError(f"--set {text}: expected NAME=VALUE", hint="like --set beta=2")
    return name.strip(), setting.strip()


def _another_budget(ctx: typer.Context, settings: dict[str, Any]) -> dict[str, Any]:
    """Take the budget that a run is resumed with, where one was typed, out of ``settings``."""
    budget = settings.pop("memory_budget", None)
    source = ctx.get_parameter_source("memory_budget")
    typed = budget is not None and (source is None or source.name == "COMMANDLINE")
    return {"memory_budget": budget} if typed else {}


def _refuse_changes(
    ctx: typer.Context, saved: LearnRequest, settings: Mapping[str, Any], place: Workspace
) -> None:
    """Refuse to resume with other settings than the run began with."""
    for name, wanted in settings.items():
        before = getattr(saved, name)
        if name == "options":
            same = all(str(before.get(k)) == v for k, v in wanted.items())
        else:
            same = before == wanted
        source = ctx.get_parameter_source(name)
        if not same and (source is None or source.name == "COMMANDLINE"):
            flag = "--set" if name == "options" else f"--{name.replace('_', '-')}"
            if name == "options":
                values = [f"{k}={v}" for k, v in before.items()]
            else:
                values = [] if before is None else [before]
            began = " ".join(f"{flag} {v}" for v in values)
            began = f"with {began}" if began else f"without {flag}"
            raise UsageError(
                f"--resume continues the run as it began: {began}",
                hint=f"{place.command('edgecil learn --resume')}, or --discard to start over",
            )


def _plan(
    output: Output, settings: dict[str, Any], workspace: Path | None, events: Path | None
) -> None:
    with listening(output, events=events) as listener:
        from edgecil import api

        plan = api.plan(workspace=workspace, listener=listener, **settings)
    output.result(plan.to_json(), value_only=str(plan.kept["bytes"]))
    if output.for_people:
        _summary.show_plan(output, plan)


def _learn(
    output: Output,
    place: Workspace,
    workspace: Path | None,
    stop: _stop.Stop,
    events: Path | None,
    arguments: dict[str, Any],
) -> None:
    again = with_workspace("edgecil learn --resume", workspace)
    try:
        with listening(output, stop, events) as listener:
            from edgecil import api

            new_data = arguments.pop("new_data", None)
            result = api.learn(
                new_data, workspace=workspace, listener=listener, should_stop=stop, **arguments
            )
    except Interrupted as error:
        raise Interrupted(error.message, hint=again) from None
    except KeyboardInterrupt:
        waits = (place.run / "request.json").exists()
        if waits:
            message = "stopped at once; the run goes on from where it was last saved"
            raise Interrupted(message, hint=again) from None
        raise Interrupted(
            "stopped before training began: there is nothing to resume",
            hint="the same command starts again",
        ) from None
    if stop.wanted:
        output.note(f"the stop came after the last step: version {result.manifest.version} is made")
    path = result.path.absolute()
    answer = {"path": path, "evaluation": result.evaluation and result.evaluation.to_json()}
    output.result(_summary.manifest_json(result.manifest) | answer, value_only=str(path))
    if output.for_people:
        _summary.show_version(output, result.manifest, short(path))
        if result.manifest.test is None:
            output.next(f"{with_workspace('edgecil evaluate', workspace)} test-images/")
        output.next(
            with_workspace("edgecil report-memory", workspace),
            with_workspace("edgecil export", workspace),
        )
