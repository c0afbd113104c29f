"""Live sources: from an address to frames, sound and events. Knows no torch and no sinks.

The modules:

    source       opens an address as a stream of packets
    connection   one connection: packets → frames and sound
    receiver     a thread that reads one source, and reconnects
    format       the format of a source
    timing       times on one line, on this machine's clock, and between tries
    devices      lists the cameras and screens of this machine
    demo_scene   a generated picture that contains its number and the time
"""
