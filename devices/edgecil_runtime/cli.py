"""The command ``edgecil-device``: its options, answers and exit codes.

Results go to stdout, progress and hints to stderr; ``--json`` prints exactly one object. Exit
codes: 0 ok, 1 expected failure, 2 usage, 3 over the memory limit, 4 verification failed,
70 a bug (EDGECIL_DEBUG=1 shows the traceback), 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from importlib import import_module
from typing import Any, Callable, Dict, List, Mapping, NoReturn, Optional, Sequence, Union

from edgecil_runtime import __version__
from edgecil_runtime._environment import prepare_device
from edgecil_runtime.errors import InputError, RuntimeFault, printable
from edgecil_runtime.limits import of_process
from edgecil_runtime.memory import parse_size
from edgecil_runtime.own_process import refuse_hopeless
from edgecil_runtime.terminal import fitted

_DESCRIPTION = "Run, measure and check classifiers exported by edgecil on this device."
JSON_SCHEMA = 1
_USAGE, _BUG, _INTERRUPTED = 2, 70, 130


class _UsageError(Exception):
    """The command line cannot be parsed; the text says where."""


class _Parser(argparse.ArgumentParser):
    commands: Mapping[str, Any] = {}
    """The parsers of the commands, by name."""

    def error(self, message: str) -> NoReturn:
        raise _UsageError(f"{message}\nsee: {self.prog} --help")


def _size(text: str) -> Union[str, int]:
    try:
        return text if text == "auto" else parse_size(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(f"{error.message}; {error.hint}") from None


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number in [1, 1024]")
    return int(text)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = build_parser()
    first = words[0] if words else "-"
    if first not in parser.commands and not first.startswith("-"):
        from difflib import get_close_matches

        close = get_close_matches(first, parser.commands, 1)
        hint = f"did you mean {close[0]}?" if close else f"see: {parser.prog} --help"
        raise _UsageError(f"unknown command {first!r}\n{hint}")
    return parser.parse_args(words)


def build_parser() -> _Parser:
    """Return the parser of ``edgecil-device``."""
    parser = _Parser(prog="edgecil-device", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"edgecil-device {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parser.commands = commands.choices

    def command(name: str, summary: str, loads: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(module="commands", loads=loads, reads_files=True)
        sub.add_argument("bundle", metavar="BUNDLE", help="folder written by 'edgecil export'")
        sub.add_argument("--json", action="store_true", help="print one JSON object")
        sub.add_argument("-q", "--quiet", action="store_true", help="no progress, no hints")
        if loads:
            sub.add_argument(
                "--memory-limit",
                type=_size,
                metavar="SIZE",
                default="auto",
                help="peak of the whole process, such as 96MB (auto: what the system allows)",
            )
            sub.add_argument(
                "--threads", type=_count, default=1, metavar="N", help="threads to compute with (1)"
            )
        return sub

    evaluate = command("evaluate", "measure accuracy, latency and memory on class folders")
    evaluate.add_argument("folder", metavar="DIR", help="holds one folder of images per class")
    evaluate.add_argument(
        "--ignore-unknown", action="store_true", help="pass over folders that are not classes"
    )
    evaluate.add_argument(
        "--skip-bad", action="store_true", help="pass over images that cannot be read"
    )
    evaluate.add_argument(
        "--resume-file", metavar="FILE", help="continue from here after a power cut"
    )
    predict = command("predict", "say what is on images")
    predict.add_argument("images", metavar="IMAGE", nargs="+", help="jpg, png, webp or bmp")
    info = command("info", "show what a bundle holds, after checking its hashes", loads=False)
    _add_signature(info)
    selftest = command("selftest", "predict the images that came with the bundle")
    selftest.set_defaults(reads_files=False)
    _add_updates(commands)
    _add_doctor(commands)
    return parser


def _add_doctor(commands: Any) -> None:
    summary = "say whether this device can run bundles, and what to do if not"
    doctor = commands.add_parser("doctor", help=summary, description=summary)
    doctor.set_defaults(module="doctor")
    doctor.add_argument(
        "folder", metavar="DIR", nargs="?", default=".", help="where bundles will be installed"
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object")


def _add_updates(commands: Any) -> None:
    def command(name: str, summary: str) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(module="install_commands")
        sub.add_argument(
            "--root",
            metavar="DIR",
            help="holds the two slots (EDGECIL_DEVICE_ROOT, or edgecil-device here)",
        )
        sub.add_argument("--json", action="store_true", help="print one JSON object")
        sub.add_argument("-q", "--quiet", action="store_true", help="no progress, no hints")
        return sub

    install = command("install", "verify, write, self-test, then switch to a new version")
    install.add_argument("source", metavar="BUNDLE|DELTA", help="a bundle's folder or a delta file")
    install.add_argument(
        "--trial", action="store_true", help="go back by itself unless 'commit' comes in time"
    )
    install.add_argument(
        "--force", action="store_true", help="also an older version or another model"
    )
    install.add_argument(
        "--memory-limit", type=_size, metavar="SIZE", help="of the self-test, such as 96MB"
    )
    _add_signature(install)
    command("status", "show what is installed, after checking it byte for byte")
    command("commit", "confirm a version that is on trial")
    command("rollback", "go back to the previous version")


def _add_signature(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--require-signature", metavar="PUBKEY", help="fail unless signed by the owner of this key"
    )


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run one command and return the exit code of the process."""
    words = list(sys.argv[1:] if argv is None else argv)
    as_json, name = "--json" in words, next((w for w in words if not w.startswith("-")), "")
    try:
        options = _parse(words)
        prepare_device()
        if getattr(options, "loads", False):
            limit = of_process(options.memory_limit)
            refuse_hopeless(options.bundle, limit, options.reads_files)
        commands = import_module(f"edgecil_runtime.{options.module}")  # imports numpy
        run: Callable[[argparse.Namespace], Dict[str, Any]] = getattr(commands, options.command)
        show: Callable[[Dict[str, Any]], str] = getattr(commands, f"show_{options.command}")
        result = run(options)
        fit: bool = result.get("fit", True)  # what doctor found is its result, not its failure
        _print(_answer(options.command, fit, result=result) if as_json else _shown(show(result)))
        return 0 if fit else 1
    except RuntimeFault as fault:
        return _fail(name, as_json, fault.exit_code, fault.code, fault.message, fault.hint)
    except _UsageError as error:
        message, _, hint = str(error).partition("\n")
        return _fail(name, as_json, _USAGE, "usage", message, hint)
    except KeyboardInterrupt:
        return _fail(name, as_json, _INTERRUPTED, "interrupted", "interrupted", None)
    except BrokenPipeError:  # the reader of stdout went away, as with "| head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError:
        text, hint = "out of memory", "raise --memory-limit"
        return _fail(name, as_json, 3, "memory_limit", text, hint)
    except OSError as error:
        text = f"{error.filename or 'input/output'}: {error.strerror or error}"
        return _fail(name, as_json, 1, "io", text, None)
    except Exception as error:
        if os.environ.get("EDGECIL_DEBUG") == "1":
            traceback.print_exc()
        text = f"bug in edgecil-device {__version__}: {type(error).__name__}: {error}"
        return _fail(name, as_json, _BUG, "bug", " ".join(text.split()), "set EDGECIL_DEBUG=1")


def _answer(command: str, ok: bool, **content: Any) -> str:
    return json.dumps({"schema": JSON_SCHEMA, "command": command, "ok": ok, **content})


def _shown(text: str) -> str:
    # A file's name may hold characters that a terminal obeys.
    return fitted("\n".join(printable(line) for line in text.split("\n")), sys.stdout)


def _print(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"  # it may lack characters of a label
    print(text.encode(encoding, "replace").decode(encoding), flush=True)


def _fail(
    command: str, as_json: bool, exit_code: int, code: str, message: str, hint: Optional[str]
) -> int:
    if as_json:
        error = {"code": code, "message": message, "hint": hint}
        _print(_answer(command, False, error=error))
    lines: List[str] = [f"error: {message}"] + ([f"hint: {hint}"] if hint else [])
    text = "\n".join(lines).encode("utf-8", "replace").decode("utf-8")
    text = text.encode("ascii", "backslashreplace").decode()
    print(fitted(text, sys.stderr), file=sys.stderr)
    return exit_code
