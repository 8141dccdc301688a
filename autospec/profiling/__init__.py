"""What a machine is and, later, what decoding costs on it; knows no search and no policy."""

from __future__ import annotations

from autospec.profiling.fingerprint import device_fingerprint, differences, fingerprint_hash, host_fingerprint

__all__ = ["device_fingerprint", "differences", "fingerprint_hash", "host_fingerprint"]
