"""Pictures of 256 colors, each with a palette of its own: what GIF and `pix_fmt` pal8 hold."""

from __future__ import annotations

import av
from av.filter import Graph

#: The pixel format that `with_palette` takes.
FULL_COLORS = "bgra"


def with_palette(picture: av.VideoFrame) -> av.VideoFrame:
    """Return a picture in 256 of its own colors, dithered where it has more (pal8).

    By FFmpeg's filters palettegen and paletteuse. libav's converter knows no palettes: its formats
    of 8 bits, such as rgb8, have the same 256 colors for every picture.

    Args:
        picture: In format `FULL_COLORS`. Alpha of less than 128 becomes transparent, other opaque.
    """
    graph = Graph()
    source = graph.add_buffer(
        width=picture.width,
        height=picture.height,
        format=picture.format,
        time_base=picture.time_base,
    )
    both = graph.add("split")
    make = graph.add("palettegen", "stats_mode=single")
    use = graph.add("paletteuse", "new=1")
    sink = graph.add("buffersink")
    source.link_to(both)
    both.link_to(use, 0, 0)
    both.link_to(make, 1, 0)
    make.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    source.push(picture)
    source.push(None)  # a graph for each picture: it holds the last one back
    result = sink.pull()
    assert isinstance(result, av.VideoFrame)
    return result
