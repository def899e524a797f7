"""Block devices over a SCSI executor."""
