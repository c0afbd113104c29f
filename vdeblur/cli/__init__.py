"""The command `vdeblur`: `main`, and a file for each subcommand."""
