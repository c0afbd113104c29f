"""Restore a batch of pictures on any device: a batch in, the same batch out.

`deblurrer.Deblurrer` is the class to open first; `transfers.Overlap` runs it on frames, and
`batching.restore` on the items of a film. Knows tensors, frames in memory, devices and the user's
cache; no files, no video containers, no live sources.
"""
