"""The machine: files, folders, memory, caches, threads. Knows no video.

files           files that appear complete or not at all
folders         per-user folders
cache           results that can be made again
memory          free memory, and the most that was used
masking         addresses without their passwords and tokens
optional        optional packages
printable       texts without control characters
workers         threads with bounded queues
thread_shares   threads that share torch's and OpenCV's; the only module here that needs torch
allocator       tuning of glibc's allocator
"""
