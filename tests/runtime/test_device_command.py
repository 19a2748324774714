"""The command as a device engineer runs it: a process of its own, real limits, exit codes."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DEVICES = Path(__file__).parents[2] / "devices"
PACKAGE = DEVICES / "edgecil_runtime"


def clean_environment(**extra):
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("ORT_", "OPENBLAS", "EDGECIL"))
    }
    return {**kept, "PYTHONPATH": str(DEVICES), "PYTHONDONTWRITEBYTECODE": "1", **extra}


def run(*words, **options):
    command = [sys.executable, "-m", "edgecil_runtime", *map(str, words)]
    environment = clean_environment(**options.pop("extra", {}))
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=environment, **options
    )


def python(code, **extra):
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, timeout=60, env=clean_environment(**extra),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def answer(done):
    """The one JSON object on stdout."""
    assert done.stdout.count("\n") == 1, done.stdout
    result = json.loads(done.stdout)
    assert result["ok"] == (done.returncode == 0)
    assert "Traceback" not in done.stderr
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from importlib import util

    spec = util.spec_from_file_location("toys", Path(__file__).with_name("conftest.py"))
    toys = util.module_from_spec(spec)
    spec.loader.exec_module(toys)
    return toys.colour_folder(tmp_path_factory.mktemp("images"), each=3)


def test_evaluate_under_an_ample_limit(colour, folder):
    done = run("evaluate", colour, folder, "--memory-limit", "150MB", "--json", "-q")
    assert done.returncode == 0 and done.stderr == ""
    result = answer(done)["result"]
    assert result["top1"] == 1 and result["n"] == 9 and result["memory_limit_bytes"] == 150_000_000
    predicted = sum(result["predicted_bytes"].values())
    assert result["peak_rss_bytes"] <= predicted <= 1.25 * result["peak_rss_bytes"]


def test_tables_fit_80_columns(colour, folder):
    for words in (
        ("evaluate", colour, folder, "--memory-limit", "150MB"),
        ("predict", colour, *sorted(folder.glob("*/0.png"))),
        ("info", colour),
        ("selftest", colour),
    ):
        done = run(*words)
        assert done.returncode == 0, done.stderr
        assert max(map(len, done.stdout.splitlines())) <= 80
        assert done.stdout.isascii()
    assert "9 of 9 images" in run("evaluate", colour, folder).stderr


def test_predict_info_and_selftest_answer_in_json(colour, folder):
    image = folder / "green" / "0.png"
    result = answer(run("predict", colour, image, "--json"))
    assert result["command"] == "predict"
    first = result["result"]["predictions"][0]
    assert first["label"] == "green" and first["score"] == max(first["scores"])
    result = answer(run("info", colour, "--json"))["result"]
    assert result["classes_by_increment"] == {"1": ["red", "green"], "2": ["blue"]}
    assert answer(run("selftest", colour, "--json"))["result"]["images"] == 3


def test_a_tiny_limit_exits_3_before_loading(colour, folder):
    done = run("evaluate", colour, folder, "--memory-limit", "30MB", "--json")
    assert done.returncode == 3
    error = answer(done)["error"]
    assert error["code"] == "memory_limit" and "nothing was loaded" in error["message"]
    assert error["hint"].startswith("raise the limit to ")
    assert done.stderr.splitlines()[0] == "error: " + error["message"]
    suggested = error["hint"].split()[4].rstrip(",")
    again = run("evaluate", colour, folder, "--memory-limit", suggested, "--json", "-q")
    assert again.returncode == 0, again.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mappings on Linux only")
def test_the_hard_stop_catches_a_wrong_prediction(tmp_path, toy):
    # The manifest lies about its weights (45 MB as fp32), so the prediction lets it pass.
    lies = {"weights_bytes": 0, "activation_bytes": 0}
    path = toy.resnet_bundle(tmp_path, 18, False, memory=lies)
    toy.colour_folder(tmp_path / "set", each=1, names=("class 0",))
    done = run("evaluate", path, tmp_path / "set", "--memory-limit", "85MB", "--json", "-q")
    assert done.returncode == 3, done.stderr
    error = answer(done)["error"]
    assert error["code"] == "memory_limit" and "out of memory while loading" in error["message"]
    assert error["hint"].startswith("raise the limit to ")
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize(
    ("which", "int8"),
    [(32, True), (32, False), (18, True), pytest.param(18, False, marks=pytest.mark.slow)],
)
def test_the_prediction_holds_and_is_not_wasteful(tmp_path, toy, which, int8):
    path = toy.resnet_bundle(tmp_path, which, int8)
    toy.colour_folder(tmp_path / "set", each=2, names=("class 0",))
    words = ("evaluate", path, tmp_path / "set", "--json", "-q", "--memory-limit")
    free = answer(run(*words, "1GB"))["result"]
    predicted = sum(free["predicted_bytes"].values())
    assert free["peak_rss_bytes"] <= predicted <= 1.25 * free["peak_rss_bytes"]
    # The predicted figure as the limit: the hard stop does not get in the way.
    tight = answer(run(*words, str(predicted + 500_000)))["result"]
    assert tight["plan"] == free["plan"] == "fast"
    assert tight["peak_rss_bytes"] <= predicted + 500_000


MEMORY_CGROUP = Path("/sys/fs/cgroup/memory")


@pytest.fixture
def cgroup():
    """A memory cgroup (v1), or a skip where none can be made."""
    path = MEMORY_CGROUP / f"edgecil_test_{os.getpid()}"
    try:
        path.mkdir()
        (path / "memory.limit_in_bytes").write_text(str(100_000_000))
    except OSError as error:
        pytest.skip(f"no memory cgroup: {error}")
    yield path
    path.rmdir()


def in_cgroup(group, limit, words):
    (group / "memory.limit_in_bytes").write_text(str(limit))
    enter = f'echo $$ > {group}/cgroup.procs && exec "$@"'
    command = [sys.executable, "-m", "edgecil_runtime", *map(str, words)]
    return subprocess.run(
        ["sh", "-c", enter, "sh", *command],
        capture_output=True, text=True, timeout=60, env=clean_environment(),
    )  # fmt: skip


def test_evaluation_inside_a_kernel_limit(cgroup, tmp_path, toy):
    path = toy.resnet_bundle(tmp_path, 18, True)
    toy.colour_folder(tmp_path / "set", each=3, names=("class 0",))
    words = ["evaluate", path, tmp_path / "set", "--json", "-q", "--memory-limit"]
    done = in_cgroup(cgroup, 100_000_000, [*words, "100MB"])
    assert done.returncode == 0, done.stderr
    assert answer(done)["result"]["n"] == 3
    # Less than the need: the runtime refuses, nobody is killed.
    done = in_cgroup(cgroup, 100_000_000, [*words, "55MB"])
    assert done.returncode == 3 and answer(done)["error"]["code"] == "memory_limit"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), 2),
        (("frobnicate",), 2),
        (("evaluate", "x"), 2),
        (("evaluate", "x", "y", "--memory-limit", "lots"), 2),
        (("evaluate", "x", "y", "--threads", "0"), 2),
        (("info", "/nowhere"), 1),
        (("--help",), 0),
        (("evaluate", "--help"), 0),
        (("--version",), 0),
    ],
)
def test_usage(words, code):
    done = run(*words)
    assert done.returncode == code and "Traceback" not in done.stderr
    assert (done.stdout if code == 0 else done.stderr).strip()
    if code:
        assert done.stdout == "" and done.stderr.startswith("error: ")
        assert answer(run(*words, "--json"))["error"]["message"]


def test_exit_codes_of_bad_bundles_images_and_folders(colour, folder, tmp_path, toy):
    damaged = toy.colour_bundle(tmp_path)
    model = damaged / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1])
    for words in (("info", damaged), ("selftest", damaged), ("evaluate", damaged, folder)):
        done = run(*words, "--json")
        assert done.returncode == 4 and answer(done)["error"]["code"] == "bad_bundle"
    (tmp_path / "x.jpg").write_text("no image")
    done = run("predict", colour, tmp_path / "x.jpg", "--json")
    assert done.returncode == 1 and answer(done)["error"]["code"] == "bad_image"
    toy.colour_folder(tmp_path, each=1)
    done = run("evaluate", colour, tmp_path, "--json")
    assert done.returncode == 1 and "not classes of the model" in answer(done)["error"]["message"]


def test_bugs_are_one_line_unless_debugging(colour, tmp_path):
    broken = tmp_path / "sitecustomize.py"
    broken.write_text(
        "import edgecil_runtime.commands as c\n"
        "def info(options):\n    raise ZeroDivisionError('made for the test')\n"
        "c.info = info\n"
    )
    extra = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{DEVICES}"}
    done = run("info", colour, extra=extra)
    assert done.returncode == 70 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: bug in edgecil-device")
    assert "made for the test" in done.stderr
    done = run("info", colour, extra={**extra, "EDGECIL_DEBUG": "1"})
    assert done.returncode == 70 and "Traceback" in done.stderr


def test_interruption(colour, tmp_path):
    stopper = tmp_path / "sitecustomize.py"
    stopper.write_text(
        "import edgecil_runtime.commands as c\n"
        "def info(options):\n    raise KeyboardInterrupt\nc.info = info\n"
    )
    done = run("info", colour, extra={"PYTHONPATH": f"{tmp_path}{os.pathsep}{DEVICES}"})
    assert done.returncode == 130 and done.stderr == "error: interrupted\n"


def test_a_closed_pipe_is_quiet(colour):
    command = f"{sys.executable} -m edgecil_runtime info {colour} | true"
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, env=clean_environment()
    )
    assert done.stderr == ""


def test_telemetry_is_off_before_onnxruntime_is_imported(colour):
    code = (
        "import builtins, os\n"
        "real, seen = builtins.__import__, []\n"
        "def spy(name, *rest, **more):\n"
        "    if name == 'onnxruntime': seen.append(os.environ.get('ORT_DISABLE_TELEMETRY'))\n"
        "    return real(name, *rest, **more)\n"
        "builtins.__import__ = spy\n"
        "from edgecil_runtime import Classifier\n"
        f"Classifier({str(colour)!r})\n"
        "print(set(seen), os.environ['OPENBLAS_NUM_THREADS'])"
    )
    assert python(code) == "{'1'} 1"
    assert python(code, ORT_DISABLE_TELEMETRY="0") == "{'0'} 1"  # somebody's own decision


def test_only_what_is_needed_is_imported(colour, folder):
    heavy = "{'torch', 'onnx', 'edgecil', 'edgecil_cli', 'PIL', 'scipy', 'google'}"
    listing = f"print(sorted({heavy} & {{m.split('.')[0] for m in sys.modules}}))"
    array = (
        "import sys, numpy\nfrom edgecil_runtime import Classifier\n"
        f"c = Classifier({str(colour)!r}, memory_limit='100MB')\n"
        "c.predict(numpy.zeros((9, 9, 3), 'uint8')); c.selftest()\n" + listing
    )
    assert python(array) == "[]"
    files = array.replace("c.selftest()", f"c.evaluate({str(folder)!r})")
    assert python(files) == "['PIL']"
    light = (
        "import sys, os\n"
        "from edgecil_runtime import bundle, container, images\n"
        "print('onnxruntime' in sys.modules, 'PIL' in sys.modules)\n"
        "print('OPENBLAS_NUM_THREADS' in os.environ)"
    )
    assert python(light) == "False False\nFalse"


def test_a_missing_onnxruntime_or_pillow_says_what_to_install(colour, folder):
    code = (
        "import sys\nsys.modules['onnxruntime'] = None\n"
        "from edgecil_runtime.cli import main\n"
        f"sys.exit(main(['selftest', {str(colour)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=clean_environment()
    )
    assert done.returncode == 1
    assert done.stderr == (
        "error: onnxruntime is not installed\nhint: pip install 'edgecil-runtime[cpu]'\n"
    )
    image = folder / "red" / "0.png"
    code = code.replace("onnxruntime", "PIL").replace("'selftest'", "'predict'")
    code = code.replace("])", f", {str(image)!r}])")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=clean_environment()
    )
    assert done.returncode == 1 and "hint: pip install pillow" in done.stderr


def test_public_names():
    import edgecil_runtime

    assert edgecil_runtime.__all__ == sorted(edgecil_runtime.__all__)
    for name in edgecil_runtime.__all__:
        assert getattr(edgecil_runtime, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        edgecil_runtime.Nothing  # noqa: B018


@pytest.mark.parametrize("path", sorted(DEVICES.rglob("*.py")), ids=lambda p: p.name)
def test_syntax_of_python_3_9(path):
    tree = ast.parse(path.read_text("utf-8"), feature_version=(3, 9))
    # Annotations such as "X | None" are only text then, so they may be used.
    future = [n for n in tree.body if isinstance(n, ast.ImportFrom) and n.module == "__future__"]
    assert any(alias.name == "annotations" for node in future for alias in node.names)
    assert not any(isinstance(node, ast.Match) for node in ast.walk(tree))


def test_only_the_standard_library_numpy_onnxruntime_and_pillow():
    allowed = {*sys.stdlib_module_names, "numpy", "onnxruntime", "PIL", "edgecil_runtime"}
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0
                names = [node.module]
            # Only signatures need cryptography, and only where they are required.
            extra = {"cryptography"} if path.name == "signatures.py" else set()
            assert {name.split(".")[0] for name in names} <= allowed | extra, path


def test_the_folder_watcher_runs(colour, folder, tmp_path):
    example = DEVICES / "examples" / "watch_folder.py"
    watched = tmp_path / "in"
    watched.mkdir()
    (watched / "first.png").write_bytes((folder / "blue" / "0.png").read_bytes())
    (watched / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (watched / "half.part").write_bytes(b"still arriving")
    done = subprocess.run(
        [sys.executable, example, colour, watched, "--once"],
        capture_output=True, text=True, timeout=60, env=clean_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [line.split("\t")[:2] for line in done.stdout.splitlines()] == [["first.png", "blue"]]
    assert "broken.png" in done.stderr
