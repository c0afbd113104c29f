"""Live sinks: from packets to files, folders, pipes and servers. Knows no torch and no encoder.

The modules:

    sink             the base of all sinks: a thread, a bounded queue, retries
    files            files, and folders for HLS players
    servers          standard output, servers, players
    muxing           containers, and pipes whose writes have a time limit
    push             a process that reads NUT and sends it to a server
    virtual_camera   pictures → a virtual camera
"""
