"""Triton kernels: one file an op, forward and backward together, imported when first used.

Importing this package imports neither triton nor a kernel: TRITON_INTERPRET has to be in the environment before
triton is imported, and triton itself is optional.
"""
