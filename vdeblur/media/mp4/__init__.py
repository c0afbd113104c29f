"""Read and edit ISO base media files (MP4, MOV) by their boxes, which libav partly hides or drops.

`boxes` parses and edits boxes, `tracks` reads sample tables, `graft` copies tracks and maker boxes
into an output, `headers` restores a camera's headers, `join` makes one file of several chapters.
Knows bytes only: no libav, no codecs, no frames.
"""
