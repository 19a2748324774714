"""The child process that bakes: ``baking_worker MODEL FOLDER`` prints onnxruntime's version."""

from __future__ import annotations

import sys
from pathlib import Path

from edgecil_runtime.bundle import MODEL
from edgecil_runtime.session import load_onnxruntime, one_line, providers

# Smaller tensors stay in the graph: each one outside costs a record and its alignment.
_MIN_EXTERNAL_BYTES = 1024


def write(model: str, folder: Path, weights: str) -> str:
    """Return the version of the onnxruntime that wrote the optimised graph into ``folder``."""
    runtime = load_onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(folder / MODEL)
    prefix = "session.optimized_model_external_initializers_"
    options.add_session_config_entry(prefix + "file_name", weights)
    options.add_session_config_entry(prefix + "min_size_in_bytes", str(_MIN_EXTERNAL_BYTES))
    runtime.InferenceSession(model, options, providers=providers())
    return str(runtime.__version__)


if __name__ == "__main__":
    try:
        print(write(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
    except Exception as error:
        print(one_line(error), file=sys.stderr)
        sys.exit(1)
