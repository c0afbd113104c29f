"""Speed: frames per second of each stage, the fastest settings, ceilings of the device."""
