"""The agent's SQLite state and its encrypted secrets."""
