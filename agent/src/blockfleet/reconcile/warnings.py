# SPDX-License-Identifier: GPL-3.0-or-later
"""What is allowed but worth a word.  Pure."""

from __future__ import annotations

from collections import defaultdict

from blockfleet.model.desired import MINIMUM_SECRET, Document, Lifetime
from blockfleet.reconcile.wanted import Fingerprint


def warnings_of(document: Document, fingerprint: Fingerprint) -> tuple[str, ...]:
    """Return what a user should know about a document, in a stable order."""
    return (*_shared_secrets(document, fingerprint), *_weak_secrets(document), *_short_lived(document))


def _shared_secrets(document: Document, fingerprint: Fingerprint) -> list[str]:
    users = defaultdict(list)
    for target in document.targets:
        if target.chap is not None:
            users[fingerprint(target.chap.secret.get_secret_value().encode())].append(target.name)
    return [
        f"targets {' and '.join(names)} have the same CHAP secret; each should have its own (RFC 3720 8.2.1)"
        for names in users.values()
        if len(names) > 1
    ]


def _weak_secrets(document: Document) -> list[str]:
    return [
        f"the CHAP secret of {target.name} is shorter than {MINIMUM_SECRET} bytes: safe only under IPsec"
        for target in document.targets
        if target.chap is not None
        and any(
            secret is not None and len(secret.get_secret_value().encode()) < MINIMUM_SECRET
            for secret in (target.chap.secret, target.chap.mutual_secret)
        )
    ]


def _short_lived(document: Document) -> list[str]:
    until_boot = {target.name for target in document.targets if target.lifetime is Lifetime.BOOT}
    return [
        f"volume {volume.name} is declared for good, but the login to {volume.target} ends with the next boot"
        for volume in document.volumes
        if volume.target in until_boot
    ]
