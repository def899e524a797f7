# SPDX-License-Identifier: GPL-3.0-or-later
"""Configuration of the test target: dataclasses, and the reader of a JSON or YAML document."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from blockfleet_testtarget.chap import ALGORITHMS, Chap
from blockfleet_testtarget.keys import TextError, checked_wishes

DEFAULT_TARGET = "iqn.2026-11.com.example:disk"
_SIZE = re.compile(r"(\d+)\s*([KMGTP]?)(?:i?B)?", re.IGNORECASE)
_SCALE = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50}


class ConfigError(ValueError):
    """The configuration is wrong; the text names the field and the value."""


@dataclass(slots=True)
class PortalConfig:
    """A listening address. Port 0 takes a free one; `advertise` replaces HOST:PORT in SendTargets."""

    host: str = "127.0.0.1"
    port: int = 0
    group: int = 1
    advertise: str = ""


@dataclass(slots=True)
class UnitConfig:
    """A logical unit: `kind` is ram or file; sizes are in bytes; `naa` is 16 or 32 hex digits."""

    kind: str = "ram"
    size: int = 64 << 20
    path: str = ""
    block_size: int = 512
    physical_exponent: int = 0
    naa: str = ""
    serial: str = ""
    vendor: str = "TESTTGT"
    product: str = "Scripted disk"
    write_cache: bool = True
    read_only: bool = False
    thin: bool = True
    max_transfer: int = 32768


@dataclass(slots=True)
class TargetConfig:
    """A target: LUN to unit name, who may log in, and through which portal groups (all when empty).

    `keys` replaces wishes of the key table for this target; `access_groups` maps a portal group tag
    to a target port group id where they shall differ.
    """

    name: str = DEFAULT_TARGET
    alias: str = ""
    luns: dict[int, str] = field(default_factory=dict)
    portal_groups: list[int] = field(default_factory=list)
    chap: Chap | None = None
    initiators: list[str] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)
    access_groups: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class Config:
    """The whole device.

    `command_window` is in commands; `text_segment` and
    `login_segment` bound the text of one Text and Login Response in bytes; `offers` are keys
    that the target offers of its own accord; `data_ack` says whether Data-In PDUs ask for a DataACK
    from recovery level 1 on (never, last: the last one, bursts: the last of every sequence);
    `sequence_timeout` is how long data of an R2T is waited for, in seconds, before it is asked for
    again; `keep_bytes` bounds the read data that a session keeps for SNACK; `announce_lost` lets an
    Asynchronous Message tell of a lost connection at level 2; `record_pdus` and `record_bytes` bound
    what is kept of received PDUs (0 keeps none); `login_timeout` is in seconds.
    """

    portals: list[PortalConfig] = field(default_factory=lambda: [PortalConfig()])
    units: dict[str, UnitConfig] = field(default_factory=dict)
    targets: list[TargetConfig] = field(default_factory=list)
    discovery_chap: Chap | None = None
    keys: dict[str, str] = field(default_factory=dict)
    offers: list[tuple[str, str]] = field(default_factory=list)
    command_window: int = 64
    first_statsn: int = 1
    status_in_data: bool = True
    login_attention: bool = True
    text_segment: int = 8192
    login_segment: int = 8192
    login_timeout: float = 15.0
    data_ack: str = "never"
    sequence_timeout: float = 2.0
    keep_bytes: int = 64 << 20
    announce_lost: bool = True
    record_pdus: int = 10000
    record_bytes: int = 64 << 20

    def check(self) -> None:
        """Raise ConfigError when the parts do not fit together."""
        if not self.portals:
            raise ConfigError("portals: there is none")
        if self.command_window < 1:
            raise ConfigError("command_window: must be at least 1")
        if self.data_ack not in ("never", "last", "bursts"):
            raise ConfigError(f"data_ack: {self.data_ack!r} is none of never, last, bursts")
        if self.sequence_timeout <= 0:
            raise ConfigError("sequence_timeout: must be above 0")
        names = [target.name for target in self.targets]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"targets: {name} is there twice")
        for name, unit in self.units.items():
            _check_unit(f"units.{name}", unit)
        for target in self.targets:
            self._check_target(target)
        if self.discovery_chap is not None:
            _check_chap("discovery_chap", self.discovery_chap)

    def _check_target(self, target: TargetConfig) -> None:
        where = f"targets.{target.name}"
        for lun, unit in target.luns.items():
            if not 0 <= lun <= 0xFFFFFF:
                raise ConfigError(f"{where}.luns: {lun} is no LUN")
            if unit not in self.units:
                raise ConfigError(f"{where}.luns: there is no unit {unit!r}")
        try:
            checked_wishes({**self.keys, **target.keys})
        except TextError as error:
            raise ConfigError(f"{where}.keys: {error}") from error
        if target.chap is not None:
            _check_chap(f"{where}.chap", target.chap)


def _check_unit(where: str, unit: UnitConfig) -> None:
    if unit.kind not in ("ram", "file"):
        raise ConfigError(f"{where}.kind: {unit.kind!r} is neither ram nor file")
    if unit.kind == "file" and not unit.path:
        raise ConfigError(f"{where}.path: a file unit needs one")
    if unit.block_size < 512 or unit.block_size & (unit.block_size - 1):
        raise ConfigError(f"{where}.block_size: {unit.block_size} is no power of two from 512 on")
    if unit.kind == "ram" and unit.size < unit.block_size:
        raise ConfigError(f"{where}.size: {unit.size} is less than one block")
    if unit.naa and not re.fullmatch(r"[0-9a-fA-F]{16}|[0-9a-fA-F]{32}", unit.naa):
        raise ConfigError(f"{where}.naa: {unit.naa!r} is not 16 or 32 hex digits")


def _check_chap(where: str, chap: Chap) -> None:
    unknown = [number for number in chap.algorithms if number not in ALGORITHMS]
    if unknown or not chap.algorithms:
        raise ConfigError(f"{where}.algorithms: only {', '.join(ALGORITHMS)} exist")
    if chap.encoding not in ("hex", "base64"):
        raise ConfigError(f"{where}.encoding: {chap.encoding!r} is neither hex nor base64")
    if bool(chap.mutual_user) != bool(chap.mutual_secret):
        raise ConfigError(f"{where}: mutual_user and mutual_secret go together")
    if not chap.user or not chap.secret:
        raise ConfigError(f"{where}: user and secret are needed")


def parse_size(value: int | str) -> int:
    """Return bytes of a number or a text such as 64M or 2TiB; raises ConfigError."""
    if isinstance(value, int):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ConfigError(f"{value!r} is no size (a number with K, M, G, T or P)")
    return int(match[1]) << _SCALE[match[2].upper()]


def parse_address(text: str, default_port: int = 3260) -> tuple[str, int]:
    """Split HOST:PORT, [IPV6]:PORT or a bare host; raises ConfigError."""
    match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:\[\]]+))(?::(\d+))?", text)
    if match is None:
        raise ConfigError(f"{text!r} is no HOST:PORT (an IPv6 address goes into brackets)")
    port = int(match[3]) if match[3] else default_port
    if port > 65535:
        raise ConfigError(f"{text!r}: there is no port {port}")
    return match[1] or match[2], port


def format_address(host: str, port: int) -> str:
    """Return HOST:PORT, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def read_config(document: Mapping[str, Any]) -> Config:
    """Make a Config of a document; raises ConfigError, naming the field."""
    values = dict(document)
    config = Config()
    if "portals" in values:
        config.portals = [_portal(item) for item in values.pop("portals")]
    config.units = {str(name): _unit(name, item) for name, item in values.pop("units", {}).items()}
    config.targets = [_target(item) for item in values.pop("targets", [])]
    config.discovery_chap = _chap("discovery_chap", values.pop("discovery_chap", None))
    config.keys = _texts(values.pop("keys", {}))
    config.offers = [(str(name), str(value)) for name, value in values.pop("offers", [])]
    _assign("", config, values)
    config.check()
    return config


def _assign(where: str, record: Any, values: Mapping[str, Any]) -> None:
    known = {item.name for item in fields(record)}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"{where}{name}: unknown field (known: {', '.join(sorted(known))})")
        present = getattr(record, name)
        wrong = isinstance(value, bool) != isinstance(present, bool)
        if isinstance(present, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)  # noqa: PLW2901 - a whole number of seconds
        if wrong or (present is not None and not isinstance(value, type(present))):
            raise ConfigError(f"{where}{name}: {value!r} is not of type {type(present).__name__}")
        setattr(record, name, value)


def _portal(item: Mapping[str, Any] | str) -> PortalConfig:
    if isinstance(item, str):
        host, port = parse_address(item)
        return PortalConfig(host, port)
    portal = PortalConfig()
    _assign("portals.", portal, item)
    return portal


def _unit(name: str, item: Mapping[str, Any]) -> UnitConfig:
    unit, values = UnitConfig(), dict(item)
    if "size" in values:
        unit.size = parse_size(values.pop("size"))
    elif values.get("kind") == "file":
        unit.size = 0
    for text in ("naa", "serial"):
        if text in values:
            setattr(unit, text, str(values.pop(text)))
    _assign(f"units.{name}.", unit, values)
    return unit


def _target(item: Mapping[str, Any]) -> TargetConfig:
    target, values = TargetConfig(), dict(item)
    target.luns = {int(lun): str(unit) for lun, unit in values.pop("luns", {}).items()}
    target.access_groups = {int(a): int(b) for a, b in values.pop("access_groups", {}).items()}
    target.chap = _chap("targets.chap", values.pop("chap", None))
    target.keys = _texts(values.pop("keys", {}))
    _assign("targets.", target, values)
    return target


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    shown = {True: "Yes", False: "No"}
    return {name: shown[value] if isinstance(value, bool) else str(value) for name, value in values.items()}


def _chap(where: str, item: Mapping[str, Any] | None) -> Chap | None:
    if item is None:
        return None
    values = dict(item)
    for whose in ("secret", "mutual_secret"):
        if f"{whose}_file" in values:
            values[whose] = read_secret(Path(values.pop(f"{whose}_file")))
    known = {entry.name for entry in fields(Chap)}
    unknown = set(values) - known
    if unknown:
        raise ConfigError(f"{where}: unknown field {', '.join(sorted(unknown))}")
    if "algorithms" in values:
        values["algorithms"] = tuple(str(number) for number in values["algorithms"])
    return Chap(**{"user": "", "secret": "", **values})


def read_secret(path: Path) -> str:
    """Return the secret in a file, without the line end; raises ConfigError."""
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
