"""How each place of a picture moves while the shutter is open: optical flow and exposure time."""
