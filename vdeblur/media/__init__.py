"""Files, image sequences and pipes: what is read as frames and packets, and written again.

`reader` and `writer` are the two ends; `VideoReader`, `VideoWriter`, `ReadOptions` and
`EncodeOptions` are public as names of `vdeblur`.

The modules:

    reader            a file, image sequence or pipe → decoded frames, and the packets of all
                      other streams
    read_options      how a source is read, and which part of it
    names             names of files as libav gets them; addresses, pipes and devices
    default_names     names of outputs that nobody gave
    input_formats     the formats that libav may read: none that reads other files
    decoding          the decoder of one stream: on a device as long as that works
    opening           opens a source with libav, with hardware decoding where possible
    stream_roles      what becomes of each stream of a source
    pixel_formats     planes of each format that libav decodes; the meaning of color tags
    frame_factory     decoded pictures → frames with writable planes
    damage            what cannot be decoded in a source: counts and places
    libav_errors      libav's errors in words, and as errors of vdeblur
    writer            frames and packets → a container that keeps what its source had
    video_output      one restored stream on its way out: encoder, clock, packets
    copied_streams    streams whose packets are copied into the output
    output_file       the output's names on disk: temporary until it is complete
    losses            what an output keeps of its source, and what it cannot
    containers        names, abilities, tags and muxer options of the containers of outputs
    encoders          the choice of encoder, pixel format and settings
    pipes             standard input and output as files without seeking
    joined_file       pieces of several files as a single file, without a copy
    image_sequences   names of pictures, and of numbered sequences of them
    image_metadata    the metadata of PNG and JPEG files that libav drops
    sample_frames     frames spread evenly over videos, for measurements
    demo_scene        a generated moving scene
    avi               the field of AVI stream headers that libav's muxer does not expose
    mp4/              boxes of MP4 and MOV files, which libav partly hides or drops
    verify/           proof that an output kept everything of its source

`pixel_formats.layout_of` reads color tags, called by `frame_factory.frame_of` for each frame;
`vdeblur.color` applies them.

Knows libav and the bytes of files; knows no torch, no networks and no network connections.
"""
