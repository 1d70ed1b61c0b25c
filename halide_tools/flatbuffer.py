"""Reads a pipeline that Halide has serialized: FlatBuffers, tables whose fields are known by number (Halide's src/halide_ir.fbs)."""

import operator
import struct

# Of the union Expr.
UNDEFINED, INT_IMM = (0, 32), 1
ARITHMETIC = {7: operator.add, 8: operator.sub, 9: operator.mul, 10: operator.floordiv, 11: operator.mod}


class Table:
    """A table of the file. Its fields are read by number; a union takes two."""

    @classmethod
    def root(cls, data):
        return cls(data, struct.unpack_from("<I", data, 0)[0])

    def __init__(self, data, position):
        self.data, self.position = data, position
        vtable = position - struct.unpack_from("<i", data, position)[0]
        n_bytes = struct.unpack_from("<H", data, vtable)[0]
        self.offsets = struct.unpack_from(f"<{(n_bytes - 4) // 2}H", data, vtable + 4)

    def _at(self, i):
        return self.position + self.offsets[i] if i < len(self.offsets) and self.offsets[i] else None

    def _follow(self, at):
        return at + struct.unpack_from("<I", self.data, at)[0]

    def number(self, i, format="<b", default=0):
        at = self._at(i)
        return default if at is None else struct.unpack_from(format, self.data, at)[0]

    def table(self, i):
        at = self._at(i)
        return None if at is None else Table(self.data, self._follow(at))

    def _text(self, at):
        at = self._follow(at)
        return self.data[at + 4 : at + 4 + struct.unpack_from("<I", self.data, at)[0]].decode()

    def text(self, i):
        at = self._at(i)
        return "" if at is None else self._text(at)

    def _elements(self, i, size=4):
        at = self._at(i)
        if at is None:
            return []
        at = self._follow(at)
        return range(at + 4, at + 4 + size * struct.unpack_from("<I", self.data, at)[0], size)

    def tables(self, i):
        return [Table(self.data, self._follow(at)) for at in self._elements(i)]

    def texts(self, i):
        return [self._text(at) for at in self._elements(i)]

    def codes(self, i):
        return [self.data[at] for at in self._elements(i, 1)]

    def constant(self, i, what):
        """The integer that an Expr in the fields i and i + 1 comes to, None where it is undefined. Raises ValueError for what has none."""
        kind, expression = self.number(i), self.table(i + 1)
        if kind in UNDEFINED:
            return None
        if kind == INT_IMM:
            return expression.number(0, "<q")
        if kind in ARITHMETIC:
            return ARITHMETIC[kind](expression.constant(0, what), expression.constant(2, what))
        raise ValueError(f"{what}: only numbers can be kept as data, and this depends on a parameter or a size")
