"""The type of file system below a data directory: SQLite's locks and shared memory need a local disk."""

from __future__ import annotations

import re
from pathlib import Path

_MOUNTS = Path("/proc/self/mounts")
_NETWORK = {
    "9p", "acfs", "afs", "beegfs", "ceph", "cifs", "coda", "gfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs",
    "nfs4", "ocfs2", "orangefs", "pvfs2", "smb3", "smbfs", "virtiofs", "wekafs",
}  # fmt: skip
# Only these of FUSE: local ones, such as NTFS or an encrypted directory, are as good as a disk.
_NETWORK_FUSE = re.compile(
    r"fuse\.(.*(s3|gcs|blob|ftp|dav|ssh|smb|nfs|ceph|gluster|rclone|juice|seaweed|weed|moose|mfs|afs|hdfs|http|goofys|"
    r"gvfs|lustre|beegfs|alluxio|cvmfs|lizard).*)"
)


def network_fs(directory: Path, mounts: str | None = None) -> str | None:
    """Return the type of the network file system that a directory lies on, or None.

    `mounts` has the format of /proc/self/mounts (proc(5)), which is read if it is not given.
    """
    if mounts is None:
        mounts = _MOUNTS.read_text(errors="surrogateescape") if _MOUNTS.exists() else ""
    found, kind = Path("/"), ""
    for line in mounts.splitlines():
        _, point, type_, *_ = line.split(" ")
        mounted = Path(_unescaped(point))
        if directory.resolve().is_relative_to(mounted) and len(mounted.parts) >= len(found.parts):
            found, kind = mounted, type_  # of two mounts at one place the later one hides the other
    return kind if kind in _NETWORK or _NETWORK_FUSE.fullmatch(kind) else None


def _unescaped(point: str) -> str:
    """Decode the octal escapes of spaces and other characters."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), point)
