"""Triton kernels for GPUs with streams (CUDA, ROCm, XPU): color, guidance.

Tests compare each with its arithmetic in torch, which stands beside it. Nothing is imported here:
Triton comes with PyTorch's builds for GPUs only. Knows tensors; no files, no video.
"""
