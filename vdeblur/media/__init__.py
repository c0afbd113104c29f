"""Files, image sequences and pipes: what is read as frames and packets, and written again.

`reader` and `writer` are the two ends; `VideoReader`, `VideoWriter`, `ReadOptions` and
`EncodeOptions` are public as names of `vdeblur`. Knows libav and the bytes of files; knows no
torch, no networks and no network connections.
"""
