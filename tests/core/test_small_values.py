"""Units, settings, requests and the registry: what is written is what is meant."""

from __future__ import annotations

import dataclasses
import json

import pytest

from edgecil import registry
from edgecil.errors import UsageError, WorkspaceError
from edgecil.learning.request import LearnRequest
from edgecil.memory.fields import holds_images
from edgecil.settings import (
    CIFAR,
    IMAGENET,
    Augment,
    Optim,
    Preprocess,
    Schedule,
    Training,
)
from edgecil.units import format_bytes, format_seconds, parse_bytes, parse_seconds


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("2MB", 2_000_000), ("1.5MiB", 1_572_864), ("600kB", 600_000), ("0", 0), ("17", 17),
        (" 3 kb ", 3_000), ("1GB", 10**9), ("1GiB", 2**30), ("1KiB", 1024), ("12b", 12),
        ("0.3MB", 300_000), ("2.1kB", 2_100),
    ],
)  # fmt: skip
def test_sizes_are_read(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "2 M B", "1e6", "2TB", "1,5MB", "nan", "２MB "])
def test_what_is_no_size_is_refused(text):
    if text == "２MB ":
        assert parse_bytes(text) == 2_000_000  # a full-width digit is a digit
        return
    with pytest.raises(UsageError, match="is not a size"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1_000, "1 kB"), (1_850_000, "1.85 MB"),
        (999_400, "999 kB"), (999_600, "1000 kB"), (12_345_678_901, "12.3 GB"),
        (123_456_789_012_345, "123457 GB"), (-2_000, "-2 kB"),
    ],
)  # fmt: skip
def test_sizes_are_written(count, text):
    assert format_bytes(count) == text


def test_durations():
    for text, seconds in (("90", 90), ("90s", 90), ("45min", 2700), ("45 m", 2700), ("2h", 7200),
                          ("1.5h", 5400), ("0", 0)):  # fmt: skip
        assert parse_seconds(text) == seconds
    for text in ("", "h", "-3s", "2d", "1h30"):
        with pytest.raises(UsageError, match="is not a duration"):
            parse_seconds(text)
    written = {0.04: "0.0 s", 9.94: "9.9 s", 42.4: "42 s", 59.6: "1 min 00 s", 200: "3 min 20 s",
               3599.7: "1 h 00 min", 7500: "2 h 05 min"}  # fmt: skip
    assert {s: format_seconds(s) for s in written} == written


@pytest.mark.parametrize("preprocess", [CIFAR, IMAGENET])
def test_preprocessing_travels_as_json(preprocess):
    assert Preprocess.from_json(json.loads(json.dumps(preprocess.to_json()))) == preprocess


@pytest.mark.parametrize("bad", [{"size": 0}, {"size": 33}, {"std": (0.1, 0.0, 0.1)}])
def test_preprocessing_that_makes_no_sense(bad):
    with pytest.raises(UsageError):
        dataclasses.replace(CIFAR, **bad)


def test_training_and_augmentation_travel_as_json():
    training = Training(7, 32, Optim(0.3, 0.8, 1e-3, Schedule("step", (0.5,), 0.2, 0.1), "adam"))
    assert Training.from_json(json.loads(json.dumps(dataclasses.asdict(training)))) == training
    augment = Augment("resized", 2, (0.1, 0.9), False, 0.3, 0.2)
    assert Augment.from_json(json.loads(json.dumps(dataclasses.asdict(augment)))) == augment
    assert (Augment.for_size(95).crop, Augment.for_size(96).crop) == ("pad", "resized")


@pytest.mark.parametrize(
    ("images", "batch", "steps", "epochs"),
    [
        (1, 128, 1, 400), (2, 128, 1, 400), (128, 128, 1, 400), (129, 128, 1, 400),
        (130, 128, 2, 200), (5000, 128, 40, 20), (50_000, 128, 391, 20), (300, 128, 3, 134),
    ],
)  # fmt: skip
def test_steps_and_epochs(images, batch, steps, epochs):
    training = Training(batch_size=batch)
    assert training.steps_for(images) == steps
    assert training.epochs_for(images) == epochs
    assert dataclasses.replace(training, epochs=3).epochs_for(images) == 3


def test_updating_reaches_into_the_optimiser():
    changed = Training().updated(epochs=4, lr=0.7, momentum=0.1, weight_decay=0.2)
    assert (changed.epochs, changed.optim.lr, changed.optim.momentum) == (4, 0.7, 0.1)
    assert changed.optim.weight_decay == 0.2
    assert Training().updated() == Training()


def test_a_request_is_saved_and_read_back(tmp_path):
    request = LearnRequest(
        "/data", "icarl", {"rule": "argmax"}, epochs=3, lr=0.5, memory_budget=7,
        class_order=("b", "a"), precision="bfloat16",
    )  # fmt: skip
    request.save(tmp_path / "run", version=3, more=[1])
    again, rest = LearnRequest.load(tmp_path / "run")
    assert again == request
    assert rest == {"version": 3, "more": [1]}
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["request.json"]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"request": {"new": 1}}', "\0"])
def test_a_damaged_request_is_one_clear_error(text, tmp_path):
    (tmp_path / "request.json").write_text(text)
    with pytest.raises(WorkspaceError, match="damaged") as caught:
        LearnRequest.load(tmp_path)
    assert "--discard" in caught.value.hint


def test_the_first_request_gets_defaults():
    request = LearnRequest("/data").inherited(None)
    assert (request.method, request.codec) == ("lwm", "webp-lossless")
    assert request.exemplars_per_class == 20
    assert LearnRequest("/data", memory_budget=5).inherited(None).exemplars_per_class is None


class TestRegistry:
    def test_every_method_describes_itself(self):
        for name, info in registry.methods().items():
            assert info.summary
            assert "_" not in name
            if info.kind == "method":
                recipe = registry.build(name)
                assert recipe.name == name
                assert recipe.phases
                for preset in registry.presets(name).values():
                    registry.build(name, preset.options)

    def test_a_plug_in_adds_its_presets_to_those_of_the_host(self):
        def added(method):
            host = registry.presets(method.split("+")[0])
            found = registry.presets(method)
            assert all(found[name] is preset for name, preset in host.items())
            for preset in found.values():
                registry.build(method, preset.options)
            return set(found) - set(host)

        for host in ("icarl", "bic", "lucir", "rehearsal"):
            assert added(f"{host}+mnemonics") == {"mnemonics", "mnemonics-released"}
        assert added("lwf+muc") == {"muc"}
        assert added("mas+muc") == {"muc-mas"}
        assert added("icarl+mfgr") == set()  # those of mfgr are the method's own
        with pytest.raises(UsageError, match="unknown plug-in"):
            registry.presets("icarl+mnemonix")

    def test_every_option_has_a_default_in_its_range_and_a_help_text(self):
        for name, info in registry.methods().items():
            if info.kind != "method":
                continue
            for field in registry.option_fields(name)[name]:
                registry.build(name, {field.name: field.default})
                registry.build(name, {field.name: str(field.default)})
                assert field.metadata["help"]

    def test_exemplar_free_methods_have_no_field_for_images(self):
        free = {
            n
            for n, info in registry.methods().items()
            if info.kind == "method" and not holds_images(registry.build(n).fields)
        }
        assert {"finetune", "lwf", "lwf-mc", "lwm", "ncm"} <= free
        assert not {"icarl", "rehearsal", "joint"} & free

    @pytest.mark.parametrize(
        ("name", "offered"), [("lmw", "lwm"), ("lwf_mc", "lwf-mc"), ("icral", "icarl"), ("", "")]
    )
    def test_unknown_names_offer_the_nearest(self, name, offered):
        with pytest.raises(UsageError, match="unknown method") as caught:
            registry.build(name)
        assert offered in caught.value.hint

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"temprature": 2}, "no option 'temprature'"),
            ({"temperature": "0"}, r"must be in \[0.1, 100\], got 0.0"),
            ({"temperature": "hot"}, "not a number"),
            ({"ce_scope": "all"}, "not one of new, seen"),
            ({"balance": "maybe"}, "not true or false"),
        ],
    )
    def test_bad_options(self, options, says):
        with pytest.raises(UsageError, match=says):
            registry.build("lwf", options)

    def test_a_method_that_is_installed_beside_is_found(self, tmp_path, monkeypatch):
        lines = (
            '"""A method of somebody else.',
            "",
            'More."""',
            "from edgecil.methods.finetune import Options, recipe",
        )
        source = "\n".join(lines)
        (tmp_path / "their_method.py").write_text(source)
        info = tmp_path / "theirs-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[edgecil.methods]\ntheirs = their_method\n")
        monkeypatch.syspath_prepend(tmp_path)
        registry.methods.cache_clear()
        try:
            assert registry.methods()["theirs"].summary == "A method of somebody else"
            assert registry.build("theirs").name == "theirs"
        finally:
            registry.methods.cache_clear()
