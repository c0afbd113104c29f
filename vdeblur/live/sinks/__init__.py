"""Outputs of live pictures: files, servers, players, virtual cameras."""
