"""Benchmarks of kdispatch."""
