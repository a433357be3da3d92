"""Which 32 bytes may be somebody's Ed25519 identity key (RFC 8032, section 5.1.3).

A point of small order is a well-formed key for which everybody can sign: with the neutral point as key, the neutral
point as R and S = 0 the equation of RFC 8032 holds for every message. OpenSSL, and so ``cryptography``, accepts such a
key and such a signature, and decodes a y of p or more as well. So whoever holds one speaks for its owner, and the owner
can deny whatever it signed. Nobody gets such a key by chance: one in 2^252 is of small order.
"""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from common.errors import IdentityError

KEY_BYTES = 32

_FIELD = 2**255 - 19
_OF_ORDER_8_HEX = "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"  # pragma: allowlist secret
_OF_ORDER_8 = int.from_bytes(bytes.fromhex(_OF_ORDER_8_HEX), "little")
_SMALL_ORDER = frozenset({0, 1, _FIELD - 1, _OF_ORDER_8, _FIELD - _OF_ORDER_8})
"""The y coordinates of the curve's eight points whose order divides 8; the test computes them again."""
_SIGN_BIT = 1 << 255


def check_identity_key(raw: bytes, whose: str) -> bytes:
    """Return the key if it is the one encoding of a point that is not of small order.

    Args:
        raw: as RFC 8032 encodes it, 32 bytes.
        whose: names the party in the error.

    Raises:
        IdentityError: another length, a y coordinate of p or more, or a point of small order, for which anybody signs.
    """
    if len(raw) != KEY_BYTES:
        raise IdentityError(f"the identity key of {whose} must be {KEY_BYTES} bytes (Ed25519), got {len(raw)}")
    y = int.from_bytes(raw, "little") & ~_SIGN_BIT
    if y >= _FIELD:
        raise IdentityError(f"the identity key of {whose} must be encoded as RFC 8032 demands; make a new key")
    if y in _SMALL_ORDER:
        raise IdentityError(
            f"the identity key of {whose} must not be of small order, for which anybody can sign; make a new key"
        )
    return raw


def checked_identity_key(key: object, whose: str) -> Ed25519PublicKey:
    """Return a certificate's or a request's public key if it is Ed25519 and :func:`check_identity_key` takes it.

    Raises:
        IdentityError: another kind of key, or one for which anybody can sign.
    """
    if not isinstance(key, Ed25519PublicKey):
        raise IdentityError(f"{whose} must hold an Ed25519 key")
    check_identity_key(key.public_bytes_raw(), whose)
    return key
