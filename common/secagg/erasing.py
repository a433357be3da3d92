"""Secrets overwritten with zeros once they are no longer needed, as far as Python lets us.

A ``bytes`` object is immutable for everyone who uses it, but its memory is ordinary memory. When nobody will use it any
more, writing zeros there harms nobody, and the secret is gone at once instead of whenever the allocator gives the
memory to somebody else, which may be never.
"""

import ctypes

_SHARED_BYTES = 1
"""CPython keeps one object for no bytes and one for each single byte, and hands it to everybody."""


def erase(*secrets: bytes) -> None:
    """Overwrite each of ``secrets`` with zeros, in place.

    Only for objects that this package has made or drawn and that nobody else holds, at the end of their life: never a
    constant, a key of a mapping (its hash stays the old one) or a field of a message that is still to be sent. An
    object may be erased twice. One of a single byte or none is left alone, because CPython shares it.

    Guaranteed, on CPython: the object's own memory holds zeros when this returns.

    Not guaranteed: anything about copies. The interpreter makes them for a slice, a concatenation or an integer (so
    Shamir's arithmetic leaves some), a library in its own memory (OpenSSL cleanses what it frees), the processor in
    registers, the operating system in a swap file or in a socket's buffer. Whoever handles a secret copies it as little
    as possible and erases each copy.

    >>> secret = bytes(range(32))
    >>> erase(secret)
    >>> secret == bytes(32)
    True
    """
    for secret in secrets:
        if len(secret) > _SHARED_BYTES:
            ctypes.memset(secret, 0, len(secret))  # type: ignore[arg-type] # ctypes passes the object's own memory.
