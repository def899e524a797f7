# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding targets: SendTargets and static configuration."""
