"""Live pictures: sources that come and go, the newest frame within a limit, sinks that may fail.

    addresses    what a source or sink is called, and how it is named without its password
    sources      an address → an open stream: network, device, screen, file, generated scene
    receiving    a thread that reads a source, connects again, and puts its times on one line
    scheduling   which frames go through the network, which pass, which are dropped
    encoding     pictures → packets, once for all sinks; sound → AAC
    sinks        packets → files, folders, pipes; push: a server, from a process of its own
    watching     counts and times; JSON lines, Prometheus
    preview      a page with the picture before and after
    session      all of these, with a thread and a bound between each

Knows no CUDA, no torch and no network: what restores is handed to `session.Session`.
"""
