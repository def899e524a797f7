# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host shall have, what it has, and the errors and events that tell of the difference."""
