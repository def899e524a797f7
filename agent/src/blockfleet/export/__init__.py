"""The NBD server: one Unix socket a volume."""
