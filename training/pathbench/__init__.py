"""The bench: encoders on tasks under one protocol, leakage rules that are enforced, statistics, and the leaderboard."""
