"""Bad input: damaged slides, objects and archives, each read in a process of its own and judged.

`python -m tests.fuzz campaign|replay`. A case is a number, the seed: all of it follows from that number and the code.
"""
