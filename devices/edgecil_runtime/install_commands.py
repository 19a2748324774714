"""The commands ``install``, ``status``, ``commit`` and ``rollback`` of ``edgecil-device``."""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from typing import Any, Dict, List, Optional

from edgecil_runtime.errors import RuntimeFault
from edgecil_runtime.install import install as install_package
from edgecil_runtime.revision import Revision
from edgecil_runtime.slots import MAX_ATTEMPTS, Slots, State

_SHOWN_EVENTS = 5


def install(options: Namespace) -> Dict[str, Any]:
    """Install a bundle or a delta; return what is current now."""

    def say(text: str) -> None:
        if not options.quiet:
            print(text, file=sys.stderr, flush=True)

    report = install_package(
        options.source,
        options.root,
        trial=options.trial,
        force=options.force,
        require_signature=options.require_signature,
        memory_limit=options.memory_limit,
        say=say,
    )
    return {
        "bundle": report.revision.folder,
        "path": str(report.path),
        "root": str(Slots(options.root).root),
        "replaced": _folder(report.replaced),
        "trial": report.trial,
        "changed": report.changed,
    }


def show_install(result: Dict[str, Any]) -> str:
    """Return what happened, and the command to type next."""
    if not result["changed"]:
        return f"{result['bundle']} is installed already; nothing was changed"
    replaced = f", replaces {result['replaced']}" if result["replaced"] else ""
    first = f"installed {result['bundle']}{replaced}"
    if result["trial"]:
        first += f"; on trial for {MAX_ATTEMPTS} starts"
    verb = "commit" if result["trial"] else "status"
    return f"{first}\n\nnext: edgecil-device {verb} --root {shlex.quote(result['root'])}"


def status(options: Namespace) -> Dict[str, Any]:
    """Return the state of the device directory; both bundles are checked byte for byte."""
    slots = Slots(options.root)
    state = slots.state()
    return {
        "root": str(slots.root),
        "current": _slot(slots, state, state.current),
        "previous": _slot(slots, state, state.previous),
        "trial": state.trial,
        "attempts": state.attempts,
        "max_attempts": MAX_ATTEMPTS,
        "history": list(state.history),
    }


def show_status(result: Dict[str, Any]) -> str:
    """Return the state in a few lines."""
    current, previous = result["current"], result["previous"]
    if current is None:
        root = shlex.quote(result["root"])
        lines = ["nothing is installed", *_events(result), ""]
        return "\n".join([*lines, f"next: edgecil-device install BUNDLE --root {root}"])
    trial = f"on trial, start {result['attempts']} of {result['max_attempts']}"
    lines = [
        f"current   {_described(current)}, {trial if result['trial'] else 'committed'}",
        f"previous  {_described(previous) if previous else 'none: no way back'}",
        f"path      {current['path']}",
    ]
    if current["problem"]:
        way = "edgecil-device rollback, or " if previous and not previous["problem"] else ""
        lines += [f"problem   {current['problem']}", f"next: {way}install the bundle again"]
    return "\n".join([*lines, "", *_events(result)])


def _events(result: Dict[str, Any]) -> List[str]:
    lines = []
    for event in result["history"][-_SHOWN_EVENTS:]:
        detail = f": {event['detail']}" if event["detail"] else ""
        lines.append(_cut(f"{event['time']}  {event['event']} {event['bundle']}{detail}"))
    return lines


def commit(options: Namespace) -> Dict[str, Any]:
    """Confirm the current version."""
    slots = Slots(options.root)
    return _outcome(slots, slots.commit())


def show_commit(result: Dict[str, Any]) -> str:
    """Return what counts now."""
    return f"{result['bundle']} is committed"


def rollback(options: Namespace) -> Dict[str, Any]:
    """Go back to the previous version."""
    slots = Slots(options.root)
    return _outcome(slots, slots.rollback())


def show_rollback(result: Dict[str, Any]) -> str:
    """Return what counts now."""
    return f"{result['bundle']} is current again; restart the app"


def _outcome(slots: Slots, state: State) -> Dict[str, Any]:
    return {"root": str(slots.root), "bundle": _folder(state.revision), "trial": state.trial}


def _folder(revision: Optional[Revision]) -> Optional[str]:
    return None if revision is None else revision.folder


def _slot(slots: Slots, state: State, key: Optional[str]) -> Optional[Dict[str, Any]]:
    revision = state.slots[key] if key else None
    if key is None or revision is None:
        return None
    try:
        slots.verified(key, revision)
        problem = None
    except RuntimeFault as fault:
        problem = fault.message
    path = str(slots.bundle_path(key, revision))
    return {"slot": key, **revision._asdict(), "path": path, "problem": problem}


def _described(slot: Dict[str, Any]) -> str:
    state = "intact" if slot["problem"] is None else "DAMAGED"
    return f"{slot['name']} version {slot['version']} in slot {slot['slot']}, {state}"


def _cut(text: str, width: int = 80) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
