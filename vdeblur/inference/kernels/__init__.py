"""Triton kernels for CUDA devices: convolutions, color.

Tests compare each with its arithmetic in torch, which stands beside it. Nothing is imported here:
Triton comes with PyTorch's CUDA builds only. Knows tensors and layers; no files, no video.
"""
