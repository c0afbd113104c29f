"""The machine: files, folders, caches, threads. Knows no video; torch only in `thread_shares`."""
