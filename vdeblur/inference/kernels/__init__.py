"""Triton kernels for CUDA devices: convolutions, residual blocks in 8 bits, colour.

Each has its arithmetic in torch beside it, which tests hold it to. Nothing is imported here: Triton
comes with PyTorch's CUDA builds only.
"""
