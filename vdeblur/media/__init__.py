"""Media files: decoding, encoding, remuxing and verifying. Knows no torch and no network."""
