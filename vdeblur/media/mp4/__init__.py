"""ISO base media files (MP4, MOV) at the level of their boxes: what libav hides or drops."""
