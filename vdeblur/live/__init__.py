"""Live pictures: sources that come and go, the newest frame within a limit, sinks that may fail.

    addresses    what a source or sink is called, and how it is named without its password
    sources      an address → an open stream: network, device, screen, file, generated scene
    receiving    a thread that reads a source, and connects again
    timing       times on one line and on this machine's clock, pace, waits between tries
    scheduling   which frames go through the network, which pass, which are dropped
    encoding     pictures → packets, once for all sinks; sound → AAC
    muxing       packets → a container of libav
    sinks        an output in a thread with a bounded queue, that comes back by itself
    recording    sinks on disks: files, HLS folders
    sending      sinks beyond: standard output; servers, from a process of their own (push)
    programs     other programs, and an installed ffmpeg
    virtual      a virtual camera
    watching     counts and times; JSON lines, Prometheus
    preview      a page with the picture before and after
    session      all of these, with a thread and a bound between each

Knows no CUDA, no torch and no network: what restores is handed to `session.Session`.
"""
