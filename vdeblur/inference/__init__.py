"""A batch of pictures in, the same batch restored out, on any device. Knows no files."""
