"""Trees of arrays (every convolution weight, say) as one flat array and an index.

A header entry per leaf would cost more than small leaves, such as batch-norm vectors.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping

import numpy as np

from edgecil.memory.codec import Array
from edgecil.memory.fields import Tree


def tree_index(tree: Tree) -> Array:
    """Return names and shapes of a tree, in order, as compressed JSON, uint8 ``(n,)``."""
    text = json.dumps({name: list(shape) for name, shape in tree.items()}, separators=(",", ":"))
    return np.frombuffer(zlib.compress(text.encode(), 9), dtype=np.uint8)


def tree_size(tree: Tree) -> int:
    """Return the number of elements of all leaves."""
    return sum(math.prod(shape) for shape in tree.values())


def flatten(leaves: Mapping[str, Array]) -> tuple[Array, Array]:
    """Return all leaves as one array ``(n,)``, and their index.

    Raises:
        ValueError: there is no leaf.
    """
    if not leaves:
        raise ValueError("the tree is empty")
    index = tree_index({name: leaf.shape for name, leaf in leaves.items()})
    return np.concatenate([leaf.ravel() for leaf in leaves.values()]), index


def unflatten(flat: Array, index: Array) -> dict[str, Array]:
    """Return the leaves by name.

    Raises:
        ValueError: the index is damaged, or is that of another tree.
    """
    try:
        tree = json.loads(zlib.decompress(index.tobytes()))
    except zlib.error as error:
        raise ValueError(f"the index does not decompress: {error}") from None
    sizes = [math.prod(shape) for shape in tree.values()]
    if flat.shape != (sum(sizes),):
        raise ValueError(f"{flat.size} elements do not fill the tree of {sum(sizes)}")
    leaves = np.split(flat, np.cumsum(sizes)[:-1])
    return {name: leaf.reshape(tree[name]) for name, leaf in zip(tree, leaves, strict=True)}
