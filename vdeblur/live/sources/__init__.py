"""Live sources: from an address to frames, sound and events. Knows no torch and no sinks."""
