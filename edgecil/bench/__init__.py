"""Protocols that can be repeated: data in increments, several methods, several seeds, one table.

A protocol is a TOML file in ``edgecil/bench/protocols`` (or the user's own); a run is one method
under one protocol with one seed, and leaves one JSON file. Tables and plots are made from those
files alone.
"""
