"""What an exception means to whoever typed the command: one line, a hint, an exit code."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Any

import typer

from edgecil.errors import EdgecilError, out_of_memory
from edgecil.spelling import near
from edgecil_runtime.errors import RuntimeFault

BUG = 70
# Training says itself what makes it smaller: see edgecil.errors.OutOfMemory.
ROOM = "end other programs that use the memory, or try another --device"
# Typer carries its own copy of click since 0.26: its base classes are reached by the public one.
_USAGE: Any = typer.BadParameter.__mro__[1]
_EXPECTED = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EEXIST, errno.ENOTDIR,
    errno.EISDIR, errno.ENAMETOOLONG, errno.EIO, errno.EMFILE,
}  # fmt: skip
_WANTED = {
    "Input should be a valid integer, unable to parse string as an integer": "not a whole number",
    "Input should be a valid number, unable to parse string as a number": "not a number",
}
"""What the parser says of a value that cannot be read, and what we say."""


@dataclass(frozen=True)
class Failure:
    """How a command failed; ``code`` names it in JSON answers."""

    code: str
    message: str
    hint: str | None
    exit_code: int


def describe(error: BaseException) -> Failure:
    """Return the failure that an exception stands for; what nobody foresaw is a bug (70)."""
    if isinstance(error, (EdgecilError, RuntimeFault)):
        return Failure(error.code, error.message, error.hint, error.exit_code)
    if isinstance(error, _USAGE):
        return _usage(error)
    if isinstance(error, OSError) and (failure := _system(error)):
        return failure
    if out_of_memory(error):
        text = f"the memory ran out: {_first_line(error)}".rstrip(": ")
        return Failure("out_of_memory", text, ROOM, 1)
    # torch is not imported here: whoever got this far into it has done so.
    text = f"{type(error).__name__}: {_first_line(error)}".rstrip(": ")
    hint = "please report it with the traceback: run the same again with EDGECIL_DEBUG=1"
    return Failure("bug", f"this is a bug in edgecil: {text}", hint, BUG)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _usage(error: Any) -> Failure:
    """Return a usage error in our words; an unknown name comes with the nearest known ones."""
    message, _, close = error.message.partition(". Did you mean ")
    known = getattr(error, "possibilities", None) or close.rstrip("?").replace("'", "").split(", ")
    typed = getattr(error, "option_name", None) or message.rpartition(" ")[2].strip("'")
    hint = ", ".join(near(typed, [name for name in known if name]))
    if not any(known):
        message = error.format_message().replace("Value error, ", "")
    path = error.ctx.command_path if getattr(error, "ctx", None) else "edgecil"
    hint = f"did you mean {hint}?" if hint else f"{path} --help"
    if message.startswith("Got unexpected extra argument"):
        extra = message.rpartition(" (")[2].rstrip(")")
        message = f"got {extra}, which belongs to no option"
        if path.endswith(" learn"):
            hint = f"{path} --new-data dir/"
    for said, wanted in _WANTED.items():
        message = message.replace(said, wanted)
    message = message.strip().rstrip(".")
    return Failure("usage", message[:1].lower() + message[1:], hint, 2)


def _system(error: OSError) -> Failure | None:
    where = f"{error.filename}: " if error.filename is not None else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "free some space and run the same again"
        return Failure("disk_full", f"{where}no space left on the disk", hint, 1)
    if error.errno == errno.ENOMEM:
        return Failure("out_of_memory", "the memory ran out", ROOM, 1)
    if error.errno in _EXPECTED and where:
        return Failure("os_error", f"{where}{(error.strerror or '').lower()}", None, 1)
    return None
