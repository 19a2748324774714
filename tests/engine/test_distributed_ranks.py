"""Two real processes under torch's launcher: equal to the bit, and equal to one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rank_runs
import small_runs
import torch
import toys
from torch import nn

from edgecil.engine import increment
from edgecil.engine.distributed import World
from edgecil.parts.weight_transfer import add_scales
from edgecil.workspace import Workspace

pytestmark = pytest.mark.usefixtures("small_generators")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder that two ranks wrote to."""
    out = tmp_path_factory.mktemp("ranks")
    for number in (1, 2):
        labels = range(2 * number - 2, 2 * number)
        toys.write_folder(out / "images" / str(number), labels, count=12)
    paths = [p for p in sys.path if p]
    settings = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, rank_runs.__file__, str(out)],
        env=os.environ | settings, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return out


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


RUNS = ["whole", "stopped", *rank_runs.DREAMING, *(f"uneven-{n}" for n in rank_runs.UNEVEN)]


@pytest.mark.parametrize("run", RUNS)
def test_all_ranks_end_equal_to_the_bit(run, ran):
    first, second = (arrays(ran / run / f"{rank}.npz") for rank in range(2))
    assert first.keys() == second.keys()
    for name, value in first.items():
        if name.endswith("num_batches_tracked"):
            continue  # counts the batches of a rank, and takes no part in anything
        assert np.array_equal(value, second[name]), name


@pytest.mark.parametrize("count", rank_runs.UNEVEN)
def test_two_ranks_train_as_one_process_does_with_the_global_batch(count, ran, tmp_path):
    rank_runs.uneven(count, tmp_path)
    alone = arrays(tmp_path / f"uneven-{count}" / "0.npz")
    together = arrays(ran / f"uneven-{count}" / "0.npz")
    images = {"new": toys.image_set(range(3), 1)}
    ctx, _ = increment.begin(toys.task("finetune", (3,)), images, toys.session())
    for name, start in ctx.net.named_parameters():
        # Only the order of additions differs.
        moved = np.linalg.norm(alone[name] - start.detach().numpy())
        apart = np.linalg.norm(alone[name] - together[name])
        assert moved > 0, name
        assert apart < 1e-3 * moved, name


def test_two_ranks_learn_from_the_synthetic_images_of_one_process(ran, tmp_path):
    """And synthesise them again where the leader says so."""
    rank_runs.dreamed("abd", tmp_path)
    alone, together = (arrays(folder / "abd" / "0.npz") for folder in (tmp_path, ran))
    (base,) = toys.learn("finetune", (3,), tmp_path / "base")
    apart, moved = 0.0, 0.0
    for name, start in base.model.net.named_parameters():
        kept = slice(0, len(start))  # the head has grown
        moved += np.square(alone[name][kept] - start.detach().numpy()).sum()
        apart += np.square(alone[name] - together[name]).sum()
    assert apart < 1e-6 * moved


def test_one_version_is_committed_per_increment_and_it_is_what_the_ranks_had(ran):
    root = ran / "whole" / ".edgecil"
    place = Workspace(root)
    assert place.versions() == [1, 2]
    assert place.current() == 2
    assert not place.run.exists()
    stored = {
        n.removeprefix("net/"): a
        for n, a in small_runs.weights(root).items()
        if n.startswith("net/")
    }
    ended = arrays(ran / "whole" / "1.npz")
    assert stored.keys() <= ended.keys()
    for name, value in stored.items():
        assert np.array_equal(value.reshape(ended[name].shape), ended[name]), name
    assert place.manifest().kept["exemplars_per_class"] == 12


def test_stopped_ranks_stop_together_save_once_and_resume_to_the_bit(ran):
    stopped, whole = (Workspace(ran / name / ".edgecil") for name in ("stopped", "whole"))
    assert {p.name for p in (ran / "stopped").glob("*.stopped")} == {"0.stopped", "1.stopped"}
    assert stopped.versions() == [1, 2]
    assert not stopped.run.exists()
    assert small_runs.equal(small_runs.weights(stopped.root), small_runs.weights(whole.root))
    assert stopped.read(2, "memory.safetensors") == whole.read(2, "memory.safetensors")


def test_of_the_buffers_batch_norm_statistics_alone_are_averaged(monkeypatch):
    """A third of a weight, three times, may be another weight."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8))
    add_scales(net)
    frozen, scale = net[0].weight.clone(), net[0].scale
    scale.grad = torch.ones_like(scale)

    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: flat.mul_(3.0))
    World(0, 3).reduce([scale], net, 0.5)
    assert torch.equal(net[0].weight, frozen)
    assert torch.equal(scale.grad, torch.full_like(scale, 1.5))
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: flat.zero_())
    World(0, 3).reduce([], net, 0.5)
    assert torch.equal(net[0].weight, frozen)
    assert not net[1].running_mean.any() and not net[1].running_var.any()


def test_a_single_process_needs_no_process_group(monkeypatch):
    world = World()
    assert world.leads
    assert world.share([1]) == [1]
    assert world.any(True, None) is True
    world.barrier()
    world.reduce([], nn.Module(), 1.0)
