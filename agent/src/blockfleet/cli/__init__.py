"""The blockfleet command."""
