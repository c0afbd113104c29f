"""Torture: random damage, kills, signals, full disks and failing system calls, judged.

Run `python -m tests.torture --minutes 60`; docs/reliability.md explains the table that it prints.
"""
