"""Every op in plain PyTorch: the oracle of the tests, the fallback of every backend, and what export traces.

float64 is computed in float64. float16 and bfloat16 are computed in float32 and rounded once, at the output, as the
fused kernels do, which never store what lies between.
"""
