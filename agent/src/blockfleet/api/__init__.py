"""The agent's HTTP API over Unix sockets."""
