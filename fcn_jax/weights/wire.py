"""The wire format of protocol buffers, read where it lies.

A message is a sequence of fields, each a number, a wire type and a value; what the numbers mean is
up to the caller. Nothing is copied and no length is believed that does not fit the message, so
that a file of 4 GiB, or one that only claims so, costs no memory. (The protobuf library copies
a file twice before it gives out the first array, and takes none beyond 2 GiB.)
"""

from __future__ import annotations

from typing import Any

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types; 3 and 4, groups, are long out of use."""

Message = dict[int, list[tuple[int, Any]]]
"""(wire type, value) of each field by number, in the file's order. Values are ints for varints,
else views of their bytes."""


class Wire:
    """Splits messages into fields, up to a number of them in all.

    Attributes:
        fields_left: How many fields may still be read; a file of nothing but tiny fields would
            else take minutes.
    """

    def __init__(self, max_fields: int = 300_000) -> None:
        self.fields_left = max_fields

    def parse(self, message: memoryview) -> Message:
        """The fields of one message; nested messages stay bytes.

        Raises:
            ValueError: If the bytes are no message.
        """
        fields: Message = {}
        position, end = 0, len(message)
        while position < end:
            self._count()
            tag, position = varint(message, position)
            number, wire = tag >> 3, tag & 7
            if wire == VARINT:
                value, position = varint(message, position)
            else:
                size, position = _size(message, position, wire)
                if size > end - position:
                    raise ValueError(
                        f"truncated or damaged: field {number} claims {size} bytes where "
                        f"{end - position} are left"
                    )
                value = message[position : position + size]
                position += size
            fields.setdefault(number, []).append((wire, value))
        return fields

    def _count(self) -> None:
        self.fields_left -= 1
        if self.fields_left < 0:
            raise ValueError("damaged: more fields than any network has")


def _size(message: memoryview, position: int, wire: int) -> tuple[int, int]:
    """The number of bytes of a value, and where it starts."""
    if wire == BYTES:
        return varint(message, position)
    if wire in (FIXED64, FIXED32):
        return (8 if wire == FIXED64 else 4), position
    raise ValueError(f"damaged: there is no wire type {wire}")


def varint(message: memoryview, position: int) -> tuple[int, int]:
    """An unsigned integer of 7 bits a byte, the lowest first, and where it ends."""
    value = 0
    for shift, byte in enumerate(message[position : position + 10]):
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, position + shift + 1
    raise ValueError("truncated or damaged: an integer without an end")


# ======================================================================== values of a field


def messages(fields: Message, number: int) -> list[memoryview]:
    """The nested messages, or the pieces of bytes, of a field.

    Raises:
        ValueError: If the field is of another kind.
    """
    values = fields.get(number, [])
    if any(wire != BYTES for wire, _ in values):
        raise ValueError(f"damaged: field {number} is no message")
    return [value for _, value in values]


def text(fields: Message, number: int) -> str:
    """The text of a field; empty where it is absent."""
    values = messages(fields, number)
    return str(values[-1], "utf-8") if values else ""


def integer(fields: Message, number: int, default: int = 0) -> int:
    """The integer of a field."""
    values = fields.get(number, [(VARINT, default)])
    if values[-1][0] != VARINT:
        raise ValueError(f"damaged: field {number} is no integer")
    return values[-1][1]


def integers(fields: Message, number: int, most: int = 32) -> list[int]:
    """The integers of a repeated field, packed into one value or not.

    Raises:
        ValueError: If there are more than ``most``, or they are no integers.
    """
    found: list[int] = []
    for wire, value in fields.get(number, []):
        if wire == VARINT:
            found.append(value)
            continue
        if wire != BYTES:
            raise ValueError(f"damaged: field {number} holds no integers")
        position = 0
        while position < len(value) and len(found) <= most:
            integer, position = varint(value, position)
            found.append(integer)
    if len(found) > most:
        raise ValueError(f"damaged: field {number} holds more than {most} integers")
    return found


def packed(fields: Message, number: int, wire: int) -> memoryview | bytes:
    """The bytes of a repeated field of fixed width, packed (in any number of pieces) or not.

    Args:
        fields: The message.
        number: The field.
        wire: `FIXED32` or `FIXED64`, what a single value is.
    """
    pieces = fields.get(number, [])
    if any(kind not in (BYTES, wire) for kind, _ in pieces):
        raise ValueError(f"damaged: field {number} holds no numbers of that width")
    if len(pieces) == 1:
        return pieces[0][1]
    return b"".join(value for _, value in pieces)
