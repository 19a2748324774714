"""Protocols: what the papers say, read back from the files; every one of them starts."""

import inspect
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toys
from PIL import Image

from edgecil import api
from edgecil.bench import catalogue, layouts
from edgecil.bench.checks import check_names
from edgecil.bench.protocol import Protocol
from edgecil.bench.protocol_files import parse, protocol, protocols
from edgecil.bench.runner import Run, Variant, execute
from edgecil.data import orders
from edgecil.engine.optim import schedule_factor
from edgecil.errors import DataError, UsageError
from edgecil.learning.prepare import prepare
from edgecil.learning.request import LearnRequest
from edgecil.registry import presets
from edgecil.settings import CIFAR, Preprocess, Schedule, Training
from edgecil.workspace import Workspace
from edgecil_cli.bench import bench

ROOT = Path(__file__).parents[2]
KNOWN = protocols()
OWN = {name for name, made in KNOWN.items() if not made.source}
HUNDRED = [f"{n:03d}" for n in range(100)]
EVERY = pytest.mark.parametrize("name", list(KNOWN))


def first(name, known=HUNDRED, seed=0, count=5):
    return [int(c) for c in protocol(name).class_names(known, seed)[:count]]


class TestOrdersAndSubsets:
    @pytest.mark.parametrize(
        ("name", "seed", "expected"),
        [
            ("abd-cifar100-b0-10", 0, [23, 8, 11, 7, 48]),
            ("abd-cifar100-b0-20", 1, [53, 37, 65, 51, 4]),
            ("abd-cifar100-b0-5", 2, [0, 76, 61, 63, 1]),
            ("mnemonics-cifar100-b50-25", 3, [68, 56, 78, 8, 23]),
            ("icarl-cifar100-b0-10", 0, [87, 0, 52, 58, 44]),
            ("mfgr-cifar100-b0-5", 4, [0, 1, 2, 3, 4]),
        ],
    )
    def test_first_classes_of_cifar100(self, name, seed, expected):
        assert first(name, seed=seed) == expected

    def test_first_classes_of_tiny_imagenet_count_folders_in_order_of_name(self):
        listed = [f"{n:03d}" for n in reversed(range(200))]  # wnids.txt is not sorted
        assert first("abd-tiny-imagenet", listed) == [131, 181, 22, 172, 144]

    def test_the_fifty_classes_of_imagenet(self):
        found = first("abd-imagenet50", [f"{n:04d}" for n in range(1000)], count=1000)
        assert found[:8] == [54, 7, 894, 512, 126, 337, 988, 11] and len(found) == 50

    def test_the_subset_of_lucir_is_the_draw_of_its_script_read_again_by_name(self):
        wnids = [f"n{n:08d}" for n in random.Random(1).sample(range(10**8), 1000)]
        state = np.random.get_state()
        np.random.seed(1993)
        drawn = sorted(np.random.choice(sorted(wnids), 100, replace=False).tolist())
        np.random.seed(1993)
        order = np.arange(100)
        np.random.shuffle(order)
        np.random.set_state(state)
        found = protocol("mnemonics-imagenet-subset-b50-5").class_names(wnids, 0)
        assert found == [drawn[i] for i in order]
        assert len(set(found)) == 100

    def test_the_subset_of_icarl_is_the_first_hundred_of_the_devkit(self):
        listed = [f"n{n}" for n in reversed(range(1000, 2000))]
        found = protocol("m2kd-imagenet100-b0-10").class_names(listed, 1)
        assert sorted(found) == sorted(listed[:100])

    def test_the_subset_of_bic_is_the_first_hundred_by_name(self):
        listed = [f"n{n}" for n in reversed(range(1000, 2000))]
        found = protocol("bic-imagenet100").class_names(listed, 0)
        assert found[:3] == ["n1068", "n1056", "n1078"]
        assert sorted(found) == [f"n{n}" for n in range(1000, 1100)]

    def test_the_order_of_icarl_on_imagenet_is_the_inverse_one_over_the_devkit(self):
        listed = [f"n{n}" for n in reversed(range(1000, 2000))]
        found = protocol("icarl-imagenet100").class_names(listed, 0)
        assert found[:6] == [listed[n] for n in (69, 23, 57, 12, 89, 87)]
        assert sorted(found) == sorted(listed[:100])

    @pytest.mark.parametrize("count", [99, 101])
    def test_another_data_set_has_other_orders_and_is_refused(self, count):
        known = [f"{n:03d}" for n in range(count)]
        for name in ("quick", "tens", "abd-cifar100-b0-10", "icarl-cifar100-b0-10"):
            with pytest.raises(DataError, match=f"of 100 classes, the data has {count}"):
                protocol(name).class_names(known, 0)

    @EVERY
    def test_every_protocol_says_how_many_classes_there_are(self, name):
        """Of a hundred classes of ImageNet ``abd-imagenet50`` would take fifty others."""
        made = KNOWN[name]
        assert made.known
        # It decides no result: those that were made without it stay good.
        plain = replace(made, known=None)
        assert Run(plain, Variant("lwf"), 0).digest == Run(made, Variant("lwf"), 0).digest
        with pytest.raises(DataError, match="is about a data set of"):
            made.class_names([f"{n:04d}" for n in range(made.known - 1)], 0)

    def test_a_protocol_of_ones_own_may_take_any_folder(self):
        made = Protocol("own", "own", "folders", "B0-2", order="natural", classes=4)
        assert made.class_names(HUNDRED, 0) == HUNDRED[:4]
        with pytest.raises(DataError, match="own has 4 classes, the data 3"):
            made.class_names(HUNDRED[:3], 0)
        with pytest.raises(DataError, match="order icarl-theano is one of 100 classes"):
            replace(made, order="icarl-theano").class_names(HUNDRED[:99], 0)
        with pytest.raises(DataError, match="'sorted 200' needs at least 200"):
            replace(made, subset="sorted 200").class_names(HUNDRED, 0)

    def test_chosen_classes_are_sorted_and_without_repeats(self):
        chosen = orders.chosen_classes(1000, 100)
        assert chosen == sorted(set(chosen)) and len(chosen) == 100


class TestSettings:
    @pytest.mark.parametrize(
        ("name", "epochs", "lr", "decay", "factors"),
        [
            # ABD section 6: 0.1, divided by 10 after 100, 150 and 200 of 250 epochs.
            ("abd-cifar100-b0-10", 250, 0.1, 2e-4, {99: 1, 100: 0.1, 150: 0.01, 249: 0.001}),
            ("abd-imagenet50", 100, 0.1, 1e-4, {29: 1, 30: 0.1, 60: 0.01, 80: 1e-3, 90: 1e-4}),
            ("mnemonics-cifar100-b50-5", 160, 0.1, 5e-4, {79: 1, 80: 0.1, 120: 0.01}),
            ("mnemonics-imagenet-b500-5", 90, 0.1, 5e-4, {29: 1, 30: 0.1, 60: 0.01}),
            # M2KD section 4.2: 2.0 on a mean over 100 units, divided by 5 every 40 epochs.
            ("m2kd-cifar100-b0-5", 80, 2.0 / 100, 1e-5 * 100, {39: 1, 40: 0.2, 79: 0.2}),
            ("m2kd-imagenet100-b0-5", 60, 2.0 / 100, 1e-5 * 100, {19: 1, 20: 0.2, 40: 0.04}),
            ("mfgr-cifar100-b0-5", 150, 0.01, 5e-4, {0: 1, 75: 0.5}),
            ("lwm-cifar100-b0-10", 10, 0.01, 1e-5, {0: 1, 9: 1}),
            # iCaRL's code: after the 21st, 31st, 41st and 51st epoch; rewritten like M2KD's.
            (
                "icarl-imagenet100",
                60,
                2.0 / 100,
                1e-5 * 100,
                {20: 1, 21: 0.2, 31: 0.04, 51: 0.0016},
            ),
        ],
    )
    def test_schedules_of_the_papers(self, name, epochs, lr, decay, factors):
        training = protocol(name).training
        assert (training.epochs, training.batch_size) == (epochs, 128)
        assert (training.optim.lr, training.optim.weight_decay) == pytest.approx((lr, decay))
        for epoch, factor in factors.items():
            start = epoch * 39 / (epochs * 39)  # as the loop counts, in steps
            found = schedule_factor(training.optim.schedule, start)
            assert found == pytest.approx(factor), epoch

    @EVERY
    def test_no_paper_lets_its_rate_rise_and_our_own_are_trained_as_learn_does(self, name):
        training = KNOWN[name].training
        if name in OWN or name.startswith("icarl-cifar100"):
            assert training is None
        else:
            assert training.optim.schedule.warmup == 0
            kinds = {"mfgr": "cosine", "lwm": "constant"}
            kind = kinds.get(name.partition("-")[0], "step")
            assert training.optim.schedule.kind == kind

    @pytest.mark.parametrize(
        ("name", "total"),
        [
            ("m2kd-cifar100-b0-10", 2000),  # section 4.7
            ("m2kd-imagenet100-b0-10", 2000),
            ("mfgr-cifar100-b0-5", 2000),  # of iCaRL in figure 7
            ("bic-imagenet100", 2000),
            ("icarl-imagenet100", 2000),
            ("mfgr-cub200", None),
        ],
    )
    def test_exemplars_are_as_many_as_the_paper_keeps(self, name, total):
        assert KNOWN[name].exemplars_total == total

    @EVERY
    def test_notes_name_variants_and_flags_that_exist(self, name):
        made = KNOWN[name]
        flags = {"--" + word.replace("_", "-") for word in inspect.signature(bench).parameters}
        text = " ".join(made.notes)
        assert set(re.findall(r"--[a-z-]+", text)) <= flags
        named = re.findall(r"[a-z0-9+-]+(?::\w+=[\w.-]*\w)+", text)
        assert named or not name.startswith(("abd", "bic"))
        check_names(Run(made, Variant.parse(found), 0) for found in named)

    @EVERY
    def test_increments_cover_the_classes(self, name):
        made = KNOWN[name]
        count = made.classes or 100
        assert sum(made.sizes(count)) == count
        if "-b" in name:
            assert name.endswith(f"-{made.split.lower()}")

    @EVERY
    def test_a_paper_is_named_and_what_was_chosen(self, name):
        made = KNOWN[name]
        own = name.startswith("quick") or name == "tens"
        assert own == (name in OWN)
        assert made.summary and made.layout in layouts.LAYOUTS
        assert own or (len(made.source) > 20 and made.notes)


class TestPublished:
    @EVERY
    def test_values_are_percentages_of_methods_and_increments(self, name):
        made = KNOWN[name]
        for method, row in made.published.items():
            assert Variant.parse(method).method == method
            values = (row.final, row.average, row.forgetting_of_base, row.omega, row.top5)
            given = [v for v in (*values, *row.accuracy) if v is not None]
            assert given and all(1 < v <= 100 for v in given)
            assert row.table
            assert not row.accuracy or len(row.accuracy) == len(made.sizes(made.classes))

    @pytest.mark.parametrize(
        ("name", "gains"),
        [
            ("mfgr-cifar100-b0-5",
             {"mas": 29.21, "mas+muc": 25.96, "lwm": 14.08, "lwf": 2.26, "lwf+muc": 2.03}),
            ("mfgr-cifar100-b0-10",
             {"mas": 24.42, "mas+muc": 19.11, "lwm": 7.19, "lwf": 3.58, "lwf+muc": 2.50}),
            ("mfgr-tiny-imagenet-b0-5",
             {"mas": 21.27, "mas+muc": 18.28, "lwm": 9.63, "lwf": 6.15, "lwf+muc": 2.61}),
        ],
    )  # fmt: skip
    def test_gains_that_mfgr_prints_follow_from_its_rows(self, name, gains):
        rows = KNOWN[name].published
        best = np.array(rows["mfgr"].accuracy[1:])
        found = {m: float(np.mean(best - rows[m].accuracy[1:])) for m in gains}
        assert found == pytest.approx(gains, abs=0.01)

    def test_gains_that_mnemonics_and_abd_print(self):
        for split, gain in (("b50-5", 1.78), ("b50-25", 6.16)):
            rows = KNOWN[f"mnemonics-cifar100-{split}"].published
            found = rows["lucir+mnemonics"].average - rows["lucir"].average
            assert found == pytest.approx(gain)
        rows = KNOWN["abd-cifar100-b0-5"].published
        assert rows["abd"].final - rows["deepinversion"].final == pytest.approx(25.1)

    def test_every_printed_row_with_mnemonics_has_weight_transfer(self):
        for name, made in KNOWN.items():
            for method in made.published:
                if "mnemonics" in method:
                    assert presets(method)[made.preset].options["weight_transfer"], name

    def test_final_and_average_follow_from_the_accuracies(self):
        (made,) = parse(
            "x", 'summary = "x"\nlayout = "folders"\nsplit = [1, 1]\n'
            '[published]\nlwm = { table = "1", accuracy = [90.0, 50.0] }\n',
        ).values()  # fmt: skip
        assert made.published["lwm"].final == 50 and made.published["lwm"].average == 70


class TestEveryProtocolStarts:
    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory):
        root = tmp_path_factory.mktemp("images")
        for name in ("a", "b"):
            (root / name).mkdir()
            for number in range(2):
                Image.new("RGB", (40, 36), (90 * number, 9, 9)).save(root / name / f"{number}.png")
        return root

    @EVERY
    def test_the_base_increment_is_prepared_as_written(self, name, folder, tmp_path):
        made = KNOWN[name]
        asked = Run(made, Variant("lwf"), 1).request(folder, ("b", "a"), base=True)
        asked.save(tmp_path / "run")
        assert LearnRequest.load(tmp_path / "run")[0] == asked
        job = prepare(asked, Workspace(tmp_path / "workspace"))
        assert job.names == ("b", "a")
        assert job.task.spec.arch == made.arch
        assert made.preprocess in (None, job.preprocess)
        assert made.augment in (None, job.augment)
        assert job.task.training == made.training or made.training is None
        assert made.epochs in (None, job.task.training.epochs)
        assert (job.task.start is None) == (made.weights is None)
        if made.exemplars_total:
            assert job.task.budget.total == made.exemplars_total
        assert job.task.budget.per_class == (made.exemplars_per_class or (
            None if made.exemplars_total else 20))  # fmt: skip

    @pytest.mark.parametrize(
        ("name", "method", "options"),
        [
            ("abd-cifar100-b0-10", "lwf", {"ce_scope": "seen"}),
            ("abd-cifar100-b0-10", "joint", {"scratch": True}),
            ("mfgr-cifar100-b0-5", "lwf", {"ce_scope": "new", "balance": True}),
            ("mfgr-cifar100-b0-5", "joint", {}),
            ("icarl-cifar100-b0-10", "icarl", {"reduction": "mean", "repeats": True}),
            ("m2kd-cifar100-b0-5", "lwf-mc", {}),
            ("mnemonics-cifar100-b50-5", "lucir+mnemonics", {"weight_transfer": True}),
            ("mnemonics-cifar100-b50-5", "lucir", {}),
            ("abd-cifar100-b0-5", "lwf:preset=mfgr", {"ce_scope": "new", "balance": True}),
            ("abd-cifar100-b0-5", "lwf:preset=abd:ce_scope=new", {"ce_scope": "new"}),
            ("quick", "icarl:preset=icarl", {"reduction": "mean", "repeats": True}),
        ],
    )
    def test_presets_bring_the_options_of_the_paper(self, name, method, options, folder, tmp_path):
        asked = Run(KNOWN[name], Variant.parse(method), 0).request(folder, ("a", "b"), base=True)
        assert prepare(asked, Workspace(tmp_path / "workspace")).request.options == options

    def test_a_released_variant_has_its_head_and_the_training_of_the_protocol(
        self, folder, tmp_path
    ):
        made = KNOWN["abd-cifar100-b0-10"]
        jobs = [
            prepare(Run(made, Variant.parse(text), 0).request(folder, ("a", "b"), base=True),
                    Workspace(tmp_path / text))
            for text in ("abd", "abd:preset=abd-released")
        ]  # fmt: skip
        paper, released = (job.task for job in jobs)
        assert (paper.spec.width, released.spec.width) == (None, 100)
        assert paper.training == released.training == made.training
        assert jobs[0].augment == jobs[1].augment == made.augment
        assert jobs[1].request.options["units"] == "all"

    def test_one_for_real_on_packed_images(self, tmp_path):
        """ABD's protocol on four classes of 32 x 32 images in CIFAR-100's binary layout."""
        home = tmp_path / "cifar-100-binary"
        home.mkdir()
        for part, count, seed in (("train", 12, 0), ("test", 5, 1)):
            rows = [
                bytes([0, label]) + image.transpose(2, 0, 1).tobytes()
                for label in range(4)
                for image in toys.pixels_of(label, count, seed)
            ]
            (home / f"{part}.bin").write_bytes(b"".join(rows))
        (home / "fine_label_names.txt").write_text("ant\nbee\ncat\ndog\n")
        made = protocol("abd-cifar100-b0-10")
        cut = replace(
            made,
            known=4,
            classes=4,
            split=(2, 2),
            arch="resnet8",
            training=replace(made.training, epochs=1),
        )
        result = execute(
            Run(cut, Variant("lwf"), 2, precision="float32"), layouts.read("cifar100", tmp_path),
            tmp_path / "run",
        )  # fmt: skip
        assert result["classes"] == [2, 4] and len(result["accuracy"]) == 2
        assert np.sum(result["confusion"]) == 20
        assert result["training"]["optim"]["schedule"]["milestones"] == [0.4, 0.6, 0.8]

    def test_a_preprocessing_stays_that_of_the_workspace(self, tmp_path):
        own = Preprocess(24, 28, (0.5, 0.4, 0.3), (0.25, 0.2, 0.1))
        workspace = tmp_path / "workspace"
        settings = {"method": "finetune", "workspace": workspace, "precision": "float32",
                    "record_ranges": False}  # fmt: skip
        base = toys.write_folder(tmp_path / "base", range(2), 4)
        api.learn(base, arch="resnet8", epochs=1, preprocess=own, **settings)
        assert Workspace(workspace).manifest().input == own
        new = toys.write_folder(tmp_path / "new", range(2, 4), 4)
        with pytest.raises(UsageError, match="the workspace's preprocessing is"):
            api.learn(new, preprocess=CIFAR, **settings)


class TestFiles:
    TEXT = (
        'summary = "own"\nlayout = "folders"\norder = "natural"\n'
        '[splits.a]\nsplit = "B0-2"\n[splits.b]\nsplit = "B0-5"\nepochs = 3\n'
    )

    def test_one_file_holds_several(self, tmp_path):
        path = tmp_path / "mine.toml"
        path.write_text(self.TEXT)
        made = protocol(f"{path}:b")
        assert (made.name, made.split, made.epochs) == ("mine-b", "B0-5", 3)
        assert made.summary == "own: B0-5"
        assert protocol(f"{path}:a").epochs is None
        with pytest.raises(UsageError, match="holds 2 protocols") as refused:
            protocol(str(path))
        assert "mine.toml:a" in refused.value.hint
        with pytest.raises(UsageError, match="unknown protocol 'c'"):
            protocol(f"{path}:c")

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("epoch = 3", r"^mine\.toml: unknown key 'epoch'"),
            ('order = "numpy"', r"^mine\.toml: unknown class order 'numpy'"),
            ('subset = "first 3"', r"^mine\.toml: unknown subset 'first 3'"),
            ('subset = "devkit 3"', "needs the layout imagenet-devkit"),
            ("[training]\nepoch = 3", r"^mine\.toml, \[training\]: unknown key 'epoch'"),
            ("[training]\nmilestones = [3]", r"\[training\]: the key 'epochs' is missing"),
            ("[augment]\ncrops = 3", r"\[augment\]: unknown key 'crops'"),
            ("[preprocess]\nsize = 3", r"\[preprocess\]: the key 'resize' is missing"),
            ("training = 3", r"\[training\]: expected a table, got 3"),
            ("[published]\nlwm = { final = 3.0 }", "lwm: the key 'table' is missing"),
            ("[published]\nlwm = { table = '1', finale = 3.0 }", "lwm: unknown key 'finale'"),
            ("[published]\nlwm = 3.0", "lwm: expected a table"),
            ("classes = [", r"^mine\.toml cannot be read"),
            ('epochs = "20"', r"^mine\.toml: epochs must be a whole number, got '20'"),
            ('classes = "25"', r"^mine\.toml: classes must be a whole number, got '25'"),
            ("classes = true", r"^mine\.toml: classes must be a whole number, got True"),
            ("classes = 0", r"^mine\.toml: classes must be at least 1, got 0"),
            ("arch = 18", r"^mine\.toml: arch must be text, got 18"),
            ('notes = "one"', r"^mine\.toml: notes must be a list of texts, got 'one'"),
            ("[training]\nepochs = 0", r"\[training\]: epochs must be at least 1, got 0"),
            ("[training]\nlr = '0.1'", r"\[training\]: lr must be a number, got '0.1'"),
            ("[training]\nlr = -1", r"\[training\]: lr must be at least 0, got -1"),
            ("[training]\nwarmup = 1", r"\[training\]: warmup must be a fraction in \[0, 1\)"),
            ("[training]\nschedule = 'cosin'", r"\[training\]: schedule must be one of step, cos"),
            ("[training]\nschedule = 'step'", r"\[training\]: the key 'milestones' is missing"),
            ("[training]\nfactor = 0.2", r"\[training\]: the key 'milestones' is missing"),
            (
                "[training]\nepochs = 9\nschedule = 'cosine'\nmilestones = [3]",
                r"\[training\]: milestones are a schedule: leave out 'schedule'",
            ),
            (
                "[training]\nepochs = 9\nmilestones = [3, 9]",
                r"\[training\]: milestones must be between 0 and 9 epochs",
            ),
            ("[training]\nmilestones = 3", r"milestones must be a list of numbers, got 3"),
            (
                '[augment]\ncrop = "random"',
                r"\[augment\]: crop must be one of pad, resized, centre",
            ),
            ("[augment]\narea = [0.5]", r"\[augment\]: area must be a list of 2 numbers"),
            (
                "[augment]\narea = [0.5, 0.1]",
                r"\[augment\]: area \(0.5, 0.1\) must be two positive",
            ),
            ("[augment]\nflip = 1", r"\[augment\]: flip must be true or false, got 1"),
            (
                "[preprocess]\nsize = 3\nresize = 2\nmean = [0, 0, 0]\nstd = [1, 1, 1]",
                r"\[preprocess\]: image size 3 must be",
            ),
            ("[published]\nlwm = { table = '1', final = '3' }", "lwm: final must be a number, got"),
            ("[splits.a]\nsplit = 5", r"\[splits\.a\]: split must be text or a list of whole num"),
            ("[splits.a]\nepochs = 3", r"\[splits\.a\]: the key 'split' is missing"),
            ("[splits.a]\nsplit = [1]\ntrain = 3", r"\[splits\.a\]: unknown key 'train'"),
            ("[splits]\na = 3", r"\[splits\.a\]: expected a table"),
            (
                "[splits.a]\nsplit = [1]\n[splits.a.training]\nepoch = 3",
                r"\[splits\.a\.training\]: unknown key 'epoch'",
            ),
        ],
    )
    def test_mistakes_are_named(self, tmp_path, line, message):
        path = tmp_path / "mine.toml"
        path.write_text(f'summary = "own"\nlayout = "folders"\nsplit = [1]\n{line}\n')
        with pytest.raises(UsageError, match=message):
            protocol(str(path))

    def test_what_training_leaves_out_is_as_in_learn(self):
        def trained(lines):
            text = f'summary = "x"\nlayout = "folders"\nsplit = [1]\n[training]\n{lines}\n'
            return parse("x", text)["x"].training

        assert trained("") == Training()
        assert trained("batch_size = 64\nlr = 1") == Training().updated(batch_size=64, lr=1)
        warm = Training().optim.schedule.warmup
        assert trained('schedule = "constant"').optim.schedule == Schedule("constant", warmup=warm)
        assert trained("warmup = 0.5").optim.schedule == Schedule("cosine", warmup=0.5)
        steps = trained("epochs = 8\nmilestones = [4, 6]\nfactor = 0.5\nwarmup = 0")
        assert steps.optim.schedule == Schedule("step", (0.5, 0.75), 0.5)

    def test_split_that_is_no_split(self):
        with pytest.raises(UsageError, match=r"^x\.toml: split must be text or a list"):
            parse("x", 'summary = "x"\nlayout = "folders"\nsplit = 5\n')

    def test_a_file_that_is_no_text(self, tmp_path):
        (tmp_path / "mine.toml").write_bytes(b"\xff\xfe")
        with pytest.raises(UsageError, match=r"mine\.toml cannot be read"):
            protocol(str(tmp_path / "mine.toml"))

    def test_a_key_misspelt_gets_the_nearest_and_a_missing_one_its_name(self, tmp_path):
        path = tmp_path / "mine.toml"
        path.write_text('summary = "own"\nlayout = "folders"\nsplit = [1]\n[training]\nepoch = 2\n')
        with pytest.raises(UsageError) as refused:
            protocol(str(path))
        assert refused.value.hint.startswith("did you mean epochs")
        path.write_text('summary = "own"\nsplit = [1]\n')
        with pytest.raises(UsageError, match=r"^mine\.toml: the key 'layout' is missing"):
            protocol(str(path))

    def test_unknown_names_offer_the_nearest(self, tmp_path):
        with pytest.raises(UsageError) as refused:
            protocol("abd-cifar100-b0-6")
        assert "abd-cifar100-b0-5" in refused.value.hint
        with pytest.raises(UsageError, match="No such file"):
            protocol(str(tmp_path / "gone.toml"))


def test_the_table_in_the_documents_is_that_of_the_files():
    """Made by ``python -m edgecil.bench.catalogue``."""
    text = (ROOT / "docs" / "protocols.md").read_text()
    assert catalogue.markdown() in text
