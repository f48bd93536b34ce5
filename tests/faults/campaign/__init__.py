"""kill -9 at random moments of everything that works on many analyses; afterwards the evidence is judged.

`python -m tests.faults.campaign --kills 50 --analyses 200 [--seed N] [--database sqlite|postgresql]`
"""
