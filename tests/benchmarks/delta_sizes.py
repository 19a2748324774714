"""How small an update is: deltas of trained increments beside what generic tools make of them.

ResNet-32 on CIFAR-100, ten classes and then ten more, each method by itself. Both versions are
exported as int8; sizes are those of all files of the new bundle, given the old one::

    EDGECIL_TEST_DATA=.../cifar100 python tests/benchmarks/delta_sizes.py \
        --methods finetune,lwm,icarl,ncm,m2kd --out docs/results/delta-sizes.json

``--work DIR`` keeps the workspaces, and takes those that are there already.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from cifar import class_order, unpack

import edgecil
from edgecil.bench.runner import hardware
from edgecil.exporting.delta import compressed, make_delta
from edgecil.workspace import Workspace
from edgecil_runtime.bundle import open_bundle

EACH, EPOCHS = 10, 5


def increments(archives: Path, target: Path) -> list[Path]:
    """Unpack the images of two increments and return a folder of links for each."""
    order = class_order(archives)[: 2 * EACH]
    if not target.exists():
        unpack(archives, target, order)
        for number in range(2):
            folder = target / f"increment-{number + 1}"
            folder.mkdir()
            for name in order[EACH * number : EACH * (number + 1)]:
                (folder / name).symlink_to(target / "train" / name)
    return [target / "increment-1", target / "increment-2"]


def trained(method: str, folders: list[Path], workspace: Path, epochs: int) -> None:
    """Learn both increments unless the workspace has them."""
    known = Workspace.find(workspace).versions()
    for folder in folders[len(known) :]:
        first = {"arch": "resnet32"} if folder is folders[0] else {}
        kept = {"exemplars_per_class": 20} if method == "icarl" else {}
        edgecil.learn(
            folder, method=method, workspace=workspace, seed=0, epochs=epochs,
            precision="bfloat16", **first, **kept,
        )  # fmt: skip


def patch_from(old: Path, new: Path) -> int | None:
    """Return what ``zstd -19 --patch-from`` makes of the new file, or None without zstd."""
    if shutil.which("zstd") is None:
        return None
    done = subprocess.run(
        ["zstd", "-19", "--ultra", "-q", "-c", f"--patch-from={old}", new],
        capture_output=True, check=True,
    )  # fmt: skip
    return len(done.stdout)


def measure(method: str, workspace: Path, scratch: Path) -> dict[str, Any]:
    """Return the sizes of one method's update in bytes."""
    settings = {"workspace": workspace, "output": scratch}
    old = edgecil.export(version=1, **settings).path
    plain = edgecil.export(version=2, **settings | {"output": scratch / "plain"}).path
    report = edgecil.export(version=2, delta_from=old, **settings)
    assert report.delta is not None
    names = [path.name for path in sorted(plain.iterdir())]
    contents = [(plain / name).read_bytes() for name in names]
    patches = [patch_from(old / name, plain / name) for name in names]
    own_scales = make_delta(open_bundle(old), open_bundle(plain), scratch)
    return {
        "method": method,
        "full": sum(map(len, contents)),
        "zlib": sum(len(zlib.compress(data, 9)) for data in contents),
        "xz": sum(len(lzma.compress(data, preset=9)) for data in contents),
        "xz_tuned": sum(len(compressed(data)[1]) for data in contents),
        "zstd_patch_from": None if None in patches else sum(size or 0 for size in patches),
        "delta_own_scales": own_scales.bytes,
        "delta": report.delta.bytes,
        "agreement_with_fp32": None if report.agreement is None else report.agreement.agreement,
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print the sizes in kB."""
    columns = ["full", "zlib", "xz", "zstd_patch_from", "delta_own_scales", "delta"]
    print(f"{'kB':<10}" + "".join(f"{name:>18}" for name in columns))
    for row in rows:
        sizes = ["-" if row[name] is None else f"{row[name] / 1000:.1f}" for name in columns]
        print(f"{row['method']:<10}" + "".join(f"{size:>18}" for size in sizes))


def main() -> None:
    """Train what is missing, measure all, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default="finetune,lwm,icarl,ncm,m2kd")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        folders = increments(Path(os.environ["EDGECIL_TEST_DATA"]), work / "images")
        for method in given.methods.split(","):
            trained(method, folders, work / method, given.epochs)
            scratch = Path(temporary, f"bundles-{method}")
            scratch.mkdir()
            rows.append(measure(method, work / method, scratch))
    show(rows)
    if given.out:
        result = {
            "benchmark": f"update of an int8 ResNet-32, {EACH} + {EACH} classes of CIFAR-100, "
            f"{given.epochs} epochs, seed 0; bytes of all files of the bundle",
            "rows": rows, "hardware": hardware(), "edgecil": edgecil.__version__,
        }  # fmt: skip
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
