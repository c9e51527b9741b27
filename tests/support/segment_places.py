"""Where things lie in the file of a buffer, as cpp/core/format/header.hpp draws them."""

import struct

HEADER_BYTES = 4096
SEALED_BYTES = 128 + 8 * 128 + 128
PROCESS_BYTES = 64 + 8 * 64

# Of the header's numbers.
OFFSETS = {"kind": 8, "major": 12, "signature": 16, "checksum": 24, "total_bytes": 32}
OFFSETS |= {"description_bytes": 40, "process_table": 48, "role_line": 56, "max_handles": 80}
OFFSETS |= {"used": 128, "prioritized": 132, "capacity": 136, "row_bytes": 144, "stride": 152}
OFFSETS |= {"alpha": 160, "eps": 168, "counters": 176, "heads": 184, "head_stride": 192}
OFFSETS |= {"leaves": 200, "records": 208}
RING_BYTES = 128
OF_A_RING = {name for name, offset in OFFSETS.items() if offset >= OFFSETS["used"]}


class Places:
    """Offsets in a file that begins with `header`: of the rows, or of that source ring."""

    def __init__(self, header, ring=0):
        def number(name):
            entry = RING_BYTES * ring if name in OF_A_RING else 0
            return struct.unpack_from("<Q", header, OFFSETS[name] + entry)[0]

        self.capacity = number("capacity")
        self.process_table, self.role_line = number("process_table"), number("role_line")
        self.cursor = number("counters")
        self.clear_before, self.filled = self.cursor + 64, self.cursor + 128
        self.max_priority = self.cursor + 192
        self.heads, self.head_stride = number("heads"), number("head_stride")
        self.leaves = number("leaves")
        self.records, self.stride = number("records"), number("stride")

    def word(self, slot):
        return self.heads + slot * self.head_stride

    def row(self, slot):
        return self.records + slot * self.stride

    def leaf_in(self, slot):
        return self.word(slot) + 8

    def lap(self, slot):
        return self.word(slot) + 12

    def leaf(self, slot):
        return self.leaves + 4 * slot

    def process(self, number):
        """Its record in the process table, which begins with the epoch."""
        return self.process_table + 64 + (number - 1) * PROCESS_BYTES
