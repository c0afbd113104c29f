"""The command `vdeblur`: options, messages, exit codes. Knows the library; nothing imports it."""
