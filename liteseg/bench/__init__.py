"""Benchmarks behind ``liteseg benchmark``: single ops, whole networks, the paper's tables and figures."""
