# SPDX-License-Identifier: GPL-3.0-or-later
"""blockfleetd: the composition root of the control plane."""
