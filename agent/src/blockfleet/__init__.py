"""Blockfleet: declared iSCSI storage for Linux hosts."""
