"""What the commands of ``edgecil-device`` do, and how their results look as text.

Every command returns the ``result`` object of ``--json``; ``show_<command>`` makes the table.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from typing import Any, Callable, Dict, List, Optional

from edgecil_runtime import memory
from edgecil_runtime.bundle import open_bundle
from edgecil_runtime.classifier import Classifier
from edgecil_runtime.limits import of_process
from edgecil_runtime.own_process import OwnProcess
from edgecil_runtime.signatures import SHOWN_DIGITS, check_signed, load_public_key, read_signature

WIDTH = 80
_WORST = 5
_REPORT_SECONDS = 1.0


def _load(options: Namespace) -> Classifier:
    """Return the classifier under ``--memory-limit``, the peak of this whole process."""
    limit = of_process(options.memory_limit)
    process = OwnProcess(limit, options.threads)
    process.prepare(options.reads_files)
    return Classifier(
        options.bundle,
        memory_limit=None if limit is None else limit.bytes,
        threads=options.threads,
        process=process,
    )


def evaluate(options: Namespace) -> Dict[str, Any]:
    """Return accuracy, latency and memory over a folder of class folders."""
    classifier = _load(options)
    result = classifier.evaluate(
        options.folder,
        None if options.quiet else progress(sys.stderr.isatty()),
        ignore_unknown=options.ignore_unknown,
        skip_bad=options.skip_bad,
        resume_file=options.resume_file,
    )
    return {
        "bundle": classifier.manifest.directory_name,
        **result.to_json(),
        "memory_limit_bytes": classifier.memory_limit,
        "predicted_bytes": classifier.need._asdict(),
        "plan": classifier.plan,
        "not_baked": classifier.not_baked,
    }


def progress(terminal: bool) -> Callable[[int, int], None]:
    """Return a progress report to stderr: one line rewritten each second, or one per tenth."""
    state = {"time": time.monotonic(), "tenth": 0}

    def report(done: int, total: int) -> None:
        if terminal:
            now = time.monotonic()
            if done == total or now - state["time"] >= _REPORT_SECONDS:
                state["time"] = now
                end = "\n" if done == total else ""
                print(f"\r{done:,} of {total:,} images", end=end, file=sys.stderr, flush=True)
        elif 10 * done // total > state["tenth"]:
            state["tenth"] = 10 * done // total
            print(f"{done} of {total} images", file=sys.stderr, flush=True)

    return report


def show_evaluate(result: Dict[str, Any]) -> str:
    """Return the table of an evaluation."""
    latency = result["latency_ms"]
    lines = [
        f"model      {_cut(result['bundle'], 68)}",
        f"images     {result['n']:,}"
        + (f"   skipped {result['skipped']:,}" * bool(result["skipped"])),
        f"top-1      {_percent(result['top1'])}",
        f"top-5      {_percent(result['top5'])}",
        f"old / new  {_percent(result['old'])} / {_percent(result['new'])}",
        f"latency    {latency['p50']:.2f} ms"
        + "".join(
            f"   {name} {latency[name]:.2f}" for name in ("p95", "p99") if latency[name] is not None
        ),
    ]
    if result["peak_rss_bytes"] is not None:
        lines.append(
            f"memory     peak {memory.format_size(result['peak_rss_bytes'])}; at the end "
            f"{memory.format_size(result['anon_bytes'])} anonymous, "
            f"{memory.format_size(result['file_bytes'])} file"
        )
    if result["memory_limit_bytes"] is not None:
        total = sum(result["predicted_bytes"].values())
        lines.append(
            f"limit      {memory.format_size(result['memory_limit_bytes'])}, "
            f"predicted {memory.format_size(total)}"
        )
    known = {name: value for name, value in result["per_class"].items() if value is not None}
    worst = sorted(known, key=lambda name: known[name])[:_WORST]
    lines += ["", "lowest classes"]
    lines += [f"  {_percent(known[name]):>8}  {_cut(name, 66)}" for name in worst]
    return "\n".join(lines)


def predict(options: Namespace) -> Dict[str, Any]:
    """Return the predictions of image files."""
    classifier = _load(options)
    predictions = []
    for path in options.images:
        found = classifier.predict(path)
        predictions.append(
            {
                "image": path,
                "label": found.label,
                "index": found.index,
                "score": found.score,
                "scores": [float(score) for score in found.scores],
            }
        )
    return {
        "bundle": classifier.manifest.directory_name,
        "score_kind": classifier.manifest.score_kind,
        "labels": list(classifier.labels),
        "predictions": predictions,
    }


def show_predict(result: Dict[str, Any]) -> str:
    """Return one line per image: label, score, path."""
    rows = result["predictions"]
    wide = min(30, max(len(row["label"]) for row in rows))
    lines = [f"{'label':<{wide}}  {result['score_kind'][:10]:>10}  image"]
    for row in rows:
        path = row["image"]
        short = path if len(path) <= WIDTH - wide - 14 else "..." + path[-(WIDTH - wide - 17) :]
        lines.append(f"{_cut(row['label'], wide):<{wide}}  {row['score']:>10.4f}  {short}")
    return "\n".join(lines)


def info(options: Namespace) -> Dict[str, Any]:
    """Return the manifest, the predicted memory and the classes by increment."""
    key = None
    if options.require_signature is not None:
        key = load_public_key(options.require_signature)
        check_signed(options.bundle, key)
    manifest = open_bundle(options.bundle).manifest
    increments: Dict[str, List[str]] = {}
    for label in manifest.labels:
        increments.setdefault(str(label.increment), []).append(label.name)
    plans = memory.PLANS[manifest.precision]
    growth = {plan.name: memory.predict_need(manifest, plan).total for plan in plans}
    return {
        **manifest.to_json(),
        "classes_by_increment": increments,
        "predicted_growth_bytes": growth,
        "signed": read_signature(options.bundle) is not None,
        "signed_by": key and key.fingerprint,
    }


def show_info(result: Dict[str, Any]) -> str:
    """Return the summary of a bundle."""
    prepared, requires = result["preprocess"], result["requires"]
    size = f"{prepared['size']} x {prepared['size']}"
    accepts = f"{size} only" if result["fixed_input"] else f"any size, resized to {size}"
    groups = result["classes_by_increment"]
    classes = ", ".join(f"{len(names)} in increment {key}" for key, names in groups.items())
    growth = ", ".join(
        f"{memory.format_size(size)} ({name})"
        for name, size in result["predicted_growth_bytes"].items()
    )
    rows = {
        "model": f"{result['name']} version {result['version']}",
        "parent": "none" if result["parent"] is None else f"version {result['parent']}",
        "created": f"{result['created']} by edgecil {result['edgecil_version']}",
        "method": result["method"],
        "classes": f"{len(result['labels'])}: {classes}",
        "scores": f"{result['score_kind']}, {result['precision']}",
        "input": f"uint8 RGB, {accepts}",
        "needs": f"onnxruntime >= {requires['onnxruntime']}, about {growth} of memory",
        "signed": _signed(result),
    }
    lines = [f"{name:<9}{_cut(text, WIDTH - 9)}" for name, text in rows.items()]
    lines += ["", "files, SHA-256 verified"]
    for name, entry in result["files"].items():
        lines.append(f"  {_cut(name, 40):<40}{entry['bytes']:>14,} B  {entry['sha256'][:12]}")
    return "\n".join(lines)


def _signed(result: Dict[str, Any]) -> str:
    if result["signed_by"]:
        return f"by key {result['signed_by'][:SHOWN_DIGITS]}, verified"
    return "yes, not checked: give --require-signature PUBKEY" if result["signed"] else "no"


def selftest(options: Namespace) -> Dict[str, Any]:
    """Return the outcome of the bundle's own test images; a failure is an error."""
    classifier = _load(options)
    return {"bundle": classifier.manifest.directory_name, **classifier.selftest()._asdict()}


def show_selftest(result: Dict[str, Any]) -> str:
    """Return the outcome in one line."""
    return (
        f"passed: {result['images']} images, largest difference "
        f"{result['max_difference']:.3g}, allowed {result['tolerance']:.3g}"
    )


def _percent(value: Optional[float]) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
