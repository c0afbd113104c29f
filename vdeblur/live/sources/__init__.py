"""Sources of live pictures: network streams, devices, screens, files, a generated scene."""
