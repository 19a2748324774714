"""From a version to a bundle: graph, calibration, int8, gates, files."""
