"""Small real bundles, built from ONNX nodes: a colour classifier and residual networks."""

import math
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from edgecil_runtime.bundle import MODEL, SELFTEST, SelfTest, encode_selftest, write_bundle

onnx = pytest.importorskip("onnx")
helper, numpy_helper, types = onnx.helper, onnx.numpy_helper, onnx.TensorProto


class Graph:
    """Nodes and initialisers, with the shape of every intermediate at one S x S image."""

    def __init__(self, seed=0):
        self.nodes, self.initialisers, self.sizes = [], [], {}
        self.generator = np.random.default_rng(seed)

    def constant(self, array):
        name = f"w{len(self.initialisers)}"
        self.initialisers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def add(self, kind, inputs, nbytes=0, **attributes):
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        self.sizes[name] = nbytes
        return name

    def planned_bytes(self):
        """Return the largest sum of intermediates alive at once, in node order."""
        last = {name: i for i, node in enumerate(self.nodes) for name in node.input}
        alive = peak = 0
        for i, node in enumerate(self.nodes):
            alive += sum(self.sizes[name] for name in node.output)
            peak = max(peak, alive)
            alive -= sum(self.sizes.get(name, 0) for name in set(node.input) if last[name] == i)
        return peak

    def model(self, output, classes, shape, metadata=()):
        self.sizes[output] = self.sizes.pop(self.nodes[-1].output[0])
        self.nodes[-1].output[0] = output
        graph = helper.make_graph(
            self.nodes,
            "toy",
            [helper.make_tensor_value_info("image", types.UINT8, shape)],
            [helper.make_tensor_value_info(output, types.FLOAT, [1, classes])],
            self.initialisers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        onnx.checker.check_model(model)
        return model.SerializeToString()

    @property
    def weights_bytes(self):
        return sum(numpy_helper.to_array(w).nbytes for w in self.initialisers)


def preprocessing(graph, size, resize, fixed):
    """uint8 NHWC of any size -> float32 NCHW (1, 3, size, size) in [-1, 1]."""
    x = "image"
    if not fixed:
        sizes = graph.constant(np.array([resize, resize], np.int64))
        x = graph.add(
            "Resize", [x, "", "", sizes], resize * resize * 3, mode="linear", antialias=1,
            exclude_outside=1, axes=[1, 2], keep_aspect_ratio_policy="not_smaller",
        )  # fmt: skip
        shape = graph.add("Shape", [x], 32, start=1, end=3)
        target = graph.constant(np.array([size, size], np.int64))
        spare = graph.add("Sub", [shape, target], 16)
        start = graph.add("Div", [spare, graph.constant(np.array([2, 2], np.int64))], 16)
        end = graph.add("Add", [start, target], 16)
        axes = graph.constant(np.array([1, 2], np.int64))
        x = graph.add("Slice", [x, start, end, axes], size * size * 3)
    nbytes = size * size * 12
    x = graph.add("Cast", [x], nbytes, to=types.FLOAT)
    x = graph.add("Mul", [x, graph.constant(np.float32(2 / 255))], nbytes)
    x = graph.add("Sub", [x, graph.constant(np.float32(1))], nbytes)
    return graph.add("Transpose", [x], nbytes, perm=[0, 3, 1, 2])


def colour_model(size=8, resize=8, fixed=False):
    """The scores are the mean red, green and blue of the centre square, in [-1, 1]."""
    graph = Graph()
    x = preprocessing(graph, size, resize, fixed)
    kernel = graph.constant(np.eye(3, dtype=np.float32)[:, :, None, None])
    x = graph.add("Conv", [x, kernel], size * size * 12)
    x = graph.add("GlobalAveragePool", [x], 12)
    x = graph.add("Flatten", [x], 12)
    shape = [1, size, size, 3] if fixed else [1, "H", "W", 3]
    data = graph.model("scores", 3, shape)
    return data, graph.weights_bytes, graph.planned_bytes()


class Layers:
    """Convolutions of one precision; int8 is U8S8 QDQ, per channel, as the exporter writes it."""

    def __init__(self, graph, int8):
        self.graph, self.int8 = graph, int8
        if int8:
            # Zero point 0: quantising clips at 0, so it is the rectifier as well.
            self.scale = graph.constant(np.float32(0.05))
            self.zero = graph.constant(np.uint8(0))

    def quantised(self, x, count):
        if not self.int8:
            return x
        q = self.graph.add("QuantizeLinear", [x, self.scale, self.zero], count)
        return self.graph.add("DequantizeLinear", [q, self.scale, self.zero])

    def weight(self, shape):
        draw = self.graph.generator
        fan = math.prod(shape[1:])
        if not self.int8:
            return self.graph.constant(draw.normal(0, fan**-0.5, shape).astype(np.float32))
        w = self.graph.constant(draw.integers(-127, 128, shape, dtype=np.int8))
        scales = self.graph.constant(np.full(shape[0], 0.03 * fan**-0.5, np.float32))
        zeros = self.graph.constant(np.zeros(shape[0], np.int8))
        return self.graph.add("DequantizeLinear", [w, scales, zeros], axis=0)

    def bias(self, width, fan):
        if not self.int8:
            return self.graph.constant(np.zeros(width, np.float32))
        bias = self.graph.constant(np.zeros(width, np.int32))
        # Exactly input scale times weight scale, or onnxruntime does not fuse the convolution.
        scales = self.graph.constant(np.float32(0.05) * np.full(width, 0.03 * fan**-0.5, "f4"))
        zeros = self.graph.constant(np.zeros(width, np.int32))
        return self.graph.add("DequantizeLinear", [bias, scales, zeros], axis=0)

    def conv(self, x, cin, cout, side, kernel=3, stride=1, relu=True):
        """Return (output, its side); between fused int8 nodes a value takes one byte."""
        side = -(-side // stride)
        pads = [kernel // 2] * 4
        w = self.weight((cout, cin, kernel, kernel))
        count = cout * side * side
        nbytes = 0 if self.int8 else 4 * count
        x = self.graph.add(
            "Conv",
            [x, w, self.bias(cout, cin * kernel**2)],
            nbytes,
            strides=[stride] * 2,
            pads=pads,
        )
        if relu and not self.int8:
            x = self.graph.add("Relu", [x], nbytes)
        return self.quantised(x, count), side

    def sum(self, x, y, count):
        nbytes = 0 if self.int8 else 4 * count
        x = self.graph.add("Add", [x, y], nbytes)
        if not self.int8:
            x = self.graph.add("Relu", [x], nbytes)
        return self.quantised(x, count)


def residual_model(widths, blocks, size, resize, classes, int8, stem=3, fixed=False):
    """A residual network; ``stem=7`` adds stride and pooling as for ImageNet."""
    graph = Graph()
    layers = Layers(graph, int8)
    x = preprocessing(graph, size, resize, fixed)
    x = layers.quantised(x, size * size * 3)
    x, side = layers.conv(x, 3, widths[0], size, stem, 2 if stem == 7 else 1)
    if stem == 7:
        side = side // 2
        x = graph.add(
            "MaxPool", [x], (1 if int8 else 4) * widths[0] * side * side,
            kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1],
        )  # fmt: skip
        x = layers.quantised(x, 0)
    cin = widths[0]
    for stage, cout in enumerate(widths):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            y, after = layers.conv(x, cin, cout, side, 3, stride)
            y, _ = layers.conv(y, cout, cout, after, 3, 1, relu=False)
            if cin != cout or stride > 1:
                x, _ = layers.conv(x, cin, cout, side, 1, stride, relu=False)
            x, cin, side = layers.sum(x, y, cout * after * after), cout, after
    x = graph.add("GlobalAveragePool", [x], 4 * cin)
    x = graph.add("Flatten", [x], 4 * cin)
    x = layers.quantised(x, cin)
    weight, bias = layers.weight((classes, cin)), layers.bias(classes, cin)
    x = graph.add("Gemm", [x, weight, bias], 4 * classes, transB=1)
    shape = [1, size, size, 3] if fixed else [1, "H", "W", 3]
    data = graph.model("scores", classes, shape)
    return data, graph.weights_bytes, graph.planned_bytes()


@cache
def resnet32(int8, classes=100):
    return residual_model((16, 32, 64), 5, 32, 32, classes, int8)


@cache
def resnet18(int8, classes=100):
    return residual_model((64, 128, 256, 512), 2, 224, 256, classes, int8, stem=7)


def manifest_json(labels, **changes):
    """A complete manifest without ``files``."""
    return {
        "schema": 1,
        "name": "toy",
        "version": 2,
        "parent": 1,
        "created": "2025-01-01T00:00:00Z",
        "edgecil_version": "0.1.0",
        "method": "lwm",
        "labels": [{"name": n, "increment": 1 + i // 2} for i, n in enumerate(labels)],
        "preprocess": {"size": 8, "resize": 8, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        "score_kind": "logit",
        "precision": "fp32",
        "fixed_input": False,
        "input": {"name": "image", "dtype": "uint8", "layout": "NHWC"},
        "output": "scores",
        "calibration": {"source": "none"},
        "measured": {},
        "max_pixels": 50_000_000,
        "requires": {"onnxruntime": "1.16", "opset": 18, "ir": 8},
        "memory": {"weights_bytes": 0, "activation_bytes": 0},
        **changes,
    }


def make_bundle(folder, built, labels, size, resize, selftest=None, **changes):
    """Write a bundle of ``built = (model bytes, weights bytes, activation bytes)``."""
    data, weights, activations = built
    if selftest is None:
        selftest = SelfTest(
            np.zeros((1, size, size, 3), np.uint8), np.zeros((1, len(labels)), np.float32), 1e9
        )
    mean_std = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    changes.setdefault("memory", {"weights_bytes": weights, "activation_bytes": activations})
    changes.setdefault("preprocess", {"size": size, "resize": resize, **mean_std})
    manifest = manifest_json(labels, **changes)
    return write_bundle(folder, manifest, {MODEL: data, SELFTEST: encode_selftest(selftest)})


COLOURS = ("red", "green", "blue")


def colour_selftest(size=8):
    """Plain images of one colour, whose scores are known by hand."""
    images = np.zeros((3, size, size, 3), np.uint8)
    for channel in range(3):
        images[channel, ..., channel] = 255
    return SelfTest(images, (2 * np.eye(3) - 1).astype(np.float32), 1e-5)


def colour_bundle(folder, size=8, resize=8, fixed=False, **changes):
    changes.setdefault("selftest", colour_selftest(size))
    built = colour_model(size, resize, fixed)
    return make_bundle(folder, built, COLOURS, size, resize, fixed_input=fixed, **changes)


def resnet_bundle(folder, which, int8, **changes):
    build, size, resize = {18: (resnet18, 224, 256), 32: (resnet32, 32, 32)}[which]
    labels = [f"class {i}" for i in range(100)]
    changes.setdefault("precision", "int8" if int8 else "fp32")
    return make_bundle(folder, build(int8), labels, size, resize, **changes)


def colour_folder(folder, each=4, names=COLOURS, side=(12, 20)):
    """Image files whose strongest channel is that of their class folder."""
    generator = np.random.default_rng(1)
    for channel, name in enumerate(names):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            image = generator.integers(0, 120, (*side, 3), dtype=np.uint8)
            image[..., channel % 3] += 100
            Image.fromarray(image).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def toy():
    """The builders of this file."""
    return SimpleNamespace(
        colour_bundle=colour_bundle,
        colour_folder=colour_folder,
        colour_model=colour_model,
        colour_selftest=colour_selftest,
        make_bundle=make_bundle,
        manifest_json=manifest_json,
        resnet_bundle=resnet_bundle,
        labels=COLOURS,
    )


@pytest.fixture(scope="session")
def colour(tmp_path_factory) -> Path:
    """A bundle that nobody may change."""
    return colour_bundle(tmp_path_factory.mktemp("colour"))
