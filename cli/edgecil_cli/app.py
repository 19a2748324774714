"""The Typer app, and the one place where failures become exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

import edgecil
from edgecil.errors import Interrupted
from edgecil_cli import (
    _stop,
    bench,
    diagnose,
    doctor,
    evaluate,
    export,
    init,
    learn,
    memory,
    methods,
    showcase,
    sign,
    targets,
    upkeep,
    versions,
)
from edgecil_cli._errors import describe
from edgecil_cli._output import Output

app = typer.Typer(
    name="edgecil",
    help="Teach a deployed classifier new classes without its old images.",
    epilog="Start: edgecil learn --method lwm --new-data dir/",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

LEARN, LOOK, SHIP, KEEP = "Learn", "Look", "Ship", "Keep"
for panel, name, function, epilog in (
    (LEARN, "learn", learn.learn, learn.EPILOG),
    (LEARN, "init", init.init, init.EPILOG),
    (LEARN, "methods", methods.methods, methods.EPILOG),
    (LEARN, "demo", showcase.demo, showcase.EPILOG),
    (LOOK, "evaluate", evaluate.evaluate, evaluate.EPILOG),
    (LOOK, "predict", evaluate.predict, evaluate.PREDICT_EPILOG),
    (LOOK, "report-memory", memory.report_memory, memory.EPILOG),
    (LOOK, "diagnose", diagnose.diagnose, diagnose.EPILOG),
    (LOOK, "bench", bench.bench, bench.EPILOG),
    (LOOK, "status", versions.status, versions.STATUS_EPILOG),
    (LOOK, "history", versions.history, versions.HISTORY_EPILOG),
    (LOOK, "doctor", doctor.doctor, doctor.EPILOG),
    (SHIP, "export", export.export, export.EPILOG),
    (SHIP, "sign", sign.sign, sign.EPILOG),
    (SHIP, "targets", targets.targets, targets.EPILOG),
    (SHIP, "rollback", versions.rollback, versions.ROLLBACK_EPILOG),
    (KEEP, "rename", upkeep.rename, upkeep.RENAME_EPILOG),
    (KEEP, "forget", upkeep.forget, upkeep.FORGET_EPILOG),
    (KEEP, "gc", upkeep.gc, upkeep.GC_EPILOG),
):
    app.command(name, epilog=epilog, rich_help_panel=panel)(function)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"edgecil {edgecil.__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", metavar=" ", callback=_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


def run(arguments: Sequence[str]) -> int:
    """Return the exit code of ``edgecil`` called with ``arguments``."""
    try:
        with _stop.at_once():
            code = app(args=list(arguments), prog_name="edgecil", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        return 1
    except (Exception, KeyboardInterrupt) as error:
        return _fail(error, arguments)
    # Typer turns a KeyboardInterrupt of a command into this status.
    return _fail(KeyboardInterrupt(), arguments) if code == 130 else int(code or 0)


def _fail(error: BaseException, arguments: Sequence[str]) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        return 2
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        error = Interrupted("stopped")
    if os.environ.get("EDGECIL_DEBUG", "") not in ("", "0"):
        traceback.print_exception(error)
    failure = describe(error)
    output(arguments).failure(failure)
    return _stop.exit_code() if isinstance(error, Interrupted) else failure.exit_code


def output(arguments: Sequence[str]) -> Output:
    """Return how a failure of ``arguments`` is reported, even when they could not be parsed."""
    command = next((a for a in arguments if not a.startswith("-")), "edgecil")
    return Output(command, as_json="--json" in arguments, quiet=False)


def _drop_output() -> None:
    """Let the interpreter's last flush go nowhere: the reader of the pipe has left."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """Run the command line and leave with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal cannot show must not end the command.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(run(sys.argv[1:]))
