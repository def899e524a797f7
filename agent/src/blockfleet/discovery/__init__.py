"""Finding targets: SendTargets and static configuration."""
