"""The leaderboard: tables and published figures."""
