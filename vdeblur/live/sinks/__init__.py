"""Live sinks: from packets to files, folders, pipes and servers. Knows no torch and no encoder."""
